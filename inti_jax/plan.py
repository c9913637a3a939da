"""Show the cost of a config before anything runs: `python -m inti_jax.plan --config configs/X.py`."""

import argparse
import dataclasses
import functools
import json
import logging
import math
from typing import TYPE_CHECKING

from inti_jax import cli, config
from inti_jax.cost import scaling, topology
from inti_jax.errors import UsageError
from inti_jax.host.command import run_command
from inti_jax.hub import names

if TYPE_CHECKING:
    from inti_jax.runs.record import RunRecord

log = logging.getLogger("inti_jax")


def main(prog: str = "python -m inti_jax.plan") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Shows what a config costs, block by block: frames, tokens, multiply-accumulates, added "
        "parameters and activation memory. Needs neither dataset nor weights nor an accelerator.",
        epilog="example: %(prog)s --config k400_vit_b16:method=aim --budget 0.6",
    )
    cli.add_config_argument(parser, "the model, unless --checkpoint names it")
    parser.add_argument(
        "--checkpoint",
        type=names.local_or_uri,
        metavar="RUN",
        help="in place of --config: the model of this run, a file of what was trained, or a shared model",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="list the schedules that cost at most this share of the model without compression: the blocks "
        "to compress after and the frames in a group, or for tome the patches to merge",
    )
    parser.add_argument(
        "--classes", type=int, metavar="K", help="number of classes, if the dataset is not prepared"
    )
    parser.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="frames between two windows of a stream, for the cost of its predictions (default: about half a "
        "window)",
    )
    parser.add_argument(
        "--topology",
        metavar="NAME[,NAME...]",
        help="also compile the training step ahead of time for this TPU topology, such as v5e:4x4, or "
        "v5e:16x16*2 for two slices; needs no TPU and takes minutes. Several are compared: predicted time, "
        "efficiency, and the clips to load",
    )
    parser.add_argument(
        "--videos_per_chip",
        type=int,
        metavar="N",
        help="with --topology: N videos a step for each chip (weak scaling), in place of "
        "train.global_batch over all chips (strong scaling)",
    )
    parser.add_argument(
        "--clips_per_core",
        type=float,
        metavar="C",
        help="with several topologies: clips a second that one core loads, as `bench` measures them, for the "
        "cores that a chip needs",
    )
    parser.add_argument(
        "--platform", choices=["cuda"], help="also compile the training step for this host's devices"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    arguments, overrides = cli.parse_with_overrides(parser)
    if (arguments.config is None) == (arguments.checkpoint is None):
        raise UsageError("name the model with --config or with --checkpoint, one of the two")
    if arguments.checkpoint is not None and (overrides or arguments.classes is not None):
        raise UsageError("--checkpoint says what its model is: leave out --classes and --config.a.b=value")
    settings = None if arguments.config is None else config.load_config(arguments.config, overrides)
    if arguments.budget is not None and not 0 < arguments.budget <= 1:
        raise UsageError(f"--budget is {arguments.budget}: it should be a share, above 0 and up to 1")
    if arguments.classes is not None and arguments.classes < 1:
        raise UsageError(f"--classes is {arguments.classes}: it should be at least 1")
    if arguments.topology and arguments.platform:
        raise UsageError("--topology and --platform exclude each other")
    topologies = arguments.topology.split(",") if arguments.topology else []
    if arguments.videos_per_chip is not None and not (arguments.topology and arguments.videos_per_chip > 0):
        raise UsageError("--videos_per_chip takes a number from 1 on, and --topology")
    if arguments.clips_per_core is not None and not (
        len(topologies) > 1 and 0 < arguments.clips_per_core < math.inf
    ):
        raise UsageError("--clips_per_core takes a number above 0, and --topology with several names")
    cli.setup_logging()
    if arguments.topology:
        topology.prepare_environment()

    import jax

    from inti_jax.cost import plan as costs

    # Leave accelerators alone: they may be in use.
    jax.config.update("jax_platforms", f"{arguments.platform},cpu" if arguments.platform else "cpu")
    targets = [topology.tpu_target(name) for name in topologies]
    if arguments.platform:
        targets.append(topology.local_target(arguments.platform))
    if settings is None:
        from inti_jax.runs import trained

        record = trained.read_record(arguments.checkpoint)
    else:
        record = costs.record_of(settings, arguments.classes)
    plan, budget = costs.make_plan(record, arguments.budget, arguments.every)
    records = [_with_batch(record, target, arguments.videos_per_chip) for target in targets]
    compiled = [_compile(one, target) for one, target in zip(records, targets, strict=True)]
    scales = None
    if len(topologies) > 1:
        batches = [one.config.train.global_batch for one in records]
        scales = scaling.compare(compiled, batches, arguments.clips_per_core)
    if arguments.json:
        values = dataclasses.asdict(plan)
        if budget is not None:
            values["budget"] = dataclasses.asdict(budget)
        if scales is not None:
            values["scaling"] = [dataclasses.asdict(scale) for scale in scales]
        elif compiled:
            values["compile"] = dataclasses.asdict(compiled[0])
        print(json.dumps(values, indent=2))
    else:
        print(costs.render(plan))
        if budget is not None:
            print("\n" + costs.render_budget(budget))
        if scales is not None:
            print("\n" + scaling.render(scales))
        elif compiled:
            print("\n" + costs.render_compiled(compiled[0]))


def _with_batch(record: "RunRecord", target: topology.Target, videos_per_chip: int | None) -> "RunRecord":
    """Return `record` with the batch that it has on `target`. Raises ConfigError where that cannot be cut."""
    from inti_jax.distributed import sharding

    train = record.config.train
    if videos_per_chip is not None:
        train = dataclasses.replace(train, global_batch=videos_per_chip * len(target.devices))
    mesh = sharding.make_mesh(record.config.mesh, target.devices)
    sharding.check_batch(train.global_batch // train.accumulate, "train.global_batch", mesh)
    return dataclasses.replace(record, config=dataclasses.replace(record.config, train=train))


def _compile(record: "RunRecord", target: topology.Target) -> topology.Compiled:
    """Compile the step; with `model.remat` = "auto" again with less to keep, if it does not fit."""
    from inti_jax.runs import state
    from inti_jax.training import memory, train_step

    remat = record.config.model.remat
    settled = memory.with_remat(record, remat is True)
    log.info("compiling the training step for %s", target.name)
    lower = functools.partial(train_step.lower_step, settled)
    found = topology.compile_step(settled.config, state.abstract_model(settled), target, lower)
    if remat == "auto" and not found.fits:
        log.info("the step does not fit: compiling it with model.remat=True")
        return _compile(memory.with_remat(record, True), target)
    return found


if __name__ == "__main__":
    run_command(main)
