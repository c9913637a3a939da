"""Print where the bytes of a training step go, as TPU's compiler arranged it, on a host without a TPU.

    python -m tests.benchmarks.bytes_benchmark [--config k400_vit_b16:compression=none] [--topology v5e:4x4]
        [--config.model.scan=off]

Bytes are those of the operands and results of each instruction of one chip, with their padding, as often as
it runs. Rows are parts of the model, by its scopes, and columns the passes: forward, what the backward pass
computes again, and backward. The compiler fuses across parts, and a fusion counts where its last operation is
from. Moves between HBM and the chip's own memory have no name. Collectives are of all parts, in a row of
their own. The last table lists what takes most.
"""

import argparse
import functools
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from inti_jax import cli, config
from inti_jax.cost import topology

# Scopes of the models, the first that an operation's name has counts.
SCOPES = ("inti", "attention", "qkv", "out", "mlp", "norm", "embed", "stack")
PASSES = ("forward", "again", "backward", "update")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="k400_vit_b16:compression=none")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--videos", type=int, default=64, help="over all chips")
    parser.add_argument("--longest", type=int, default=30, metavar="N", help="instructions to list")
    parser.add_argument("--text", type=Path, help="file for the compiled module")
    arguments, overrides = cli.parse_with_overrides(parser)
    topology.prepare_environment()
    from inti_jax.cost import hlo, plan
    from inti_jax.distributed import sharding
    from inti_jax.training import train_step

    settings = config.load_config(
        arguments.config, [*overrides, f"--config.train.global_batch={arguments.videos}"]
    )
    record = plan.record_of(settings, None)
    mesh = sharding.make_mesh(settings.mesh, topology.tpu_target(arguments.topology).devices)
    compiled = train_step.lower_step(record, mesh)[1].compile()
    text = compiled.as_text()
    if arguments.text:
        arguments.text.write_text(text)
    counted = compiled.cost_analysis()
    show(text, hlo.Cost(counted["flops"], counted["bytes accessed"]), arguments.longest)
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"\npeak: {(peak + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**30:.2f} GiB")


def show(text: str, once: Any, longest: int) -> None:
    from inti_jax.cost import hlo

    program = hlo.Program(text)
    found = program.accesses()
    total, hbm = (sum(one.count * getattr(one, kind) for one in found) for kind in ("bytes", "hbm"))
    cost = program.cost(once)
    print(
        f"XLA counts {cost.flops / 1e12:.3f} TFLOP and {cost.bytes / 1e9:.2f} GB; operands and results have"
    )
    print(f"{total / 1e9:.2f} GB, of which {hbm / 1e9:.2f} GB in HBM.\n")
    table: dict[str, dict[str, float]] = defaultdict(functools.partial(defaultdict, float))
    for one in found:
        opcode = one.opcode.removesuffix("-start")
        row = "collectives" if opcode in hlo.KINDS else part(one.name)
        row = "moves" if one.opcode in ("copy-start", "slice-start") else row
        table[row][direction(one.name)] += one.count * one.bytes / 1e9
    print("| part | " + " | ".join(PASSES) + " | sum, GB |\n|---|" + "---|" * (len(PASSES) + 1))
    for name, row in sorted(table.items(), key=lambda item: -sum(item[1].values())):
        print(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in (*PASSES,)), end=" ")
        print(f"| {sum(row.values()):.2f} |")
    kinds: dict[str, float] = defaultdict(float)
    for one in found:
        kinds[one.opcode] += one.count * one.bytes / 1e9
    print("\n| opcode | GB |\n|---|---|")
    for name, size in sorted(kinds.items(), key=lambda item: -item[1])[:12]:
        print(f"| {name} | {size:.2f} |")
    alike: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for one in found:
        count = alike[one.opcode, re.sub(r"jit\([^/]*\)/", "", one.name)]
        count[0] += one.count
        count[1] += one.count * one.bytes / 1e9
    print("\n| instruction | runs | GB |\n|---|---|---|")
    for (opcode, name), (runs, size) in sorted(alike.items(), key=lambda item: -item[1][1])[:longest]:
        print(f"| {opcode} {name} | {runs} | {size:.2f} |")


def part(name: str) -> str:
    return next((scope for scope in SCOPES if re.search(rf"\b{scope}\b", name)), "rest")


def direction(name: str) -> str:
    if "rematted_computation" in name:
        return "again"
    if "transpose(" in name:
        return "backward"
    return "forward" if "jvp(" in name else "update"


if __name__ == "__main__":
    sys.exit(main())
