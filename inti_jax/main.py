"""Train or evaluate a model: `python -m inti_jax.main --config configs/X.py --workdir DIR`."""

import argparse

from inti_jax import cli
from inti_jax.errors import UsageError
from inti_jax.host.command import run_command
from inti_jax.host.paths import path_or_url, run_path


def main(prog: str = "python -m inti_jax.main") -> None:
    """Parse the arguments, then train or evaluate.

    Usage texts call the command `prog`.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains a model and evaluates it. Resumes from DIR's newest checkpoint if there is one.",
        epilog="example: %(prog)s --config quickstart:compression=inti "
        "--workdir runs/inti --config.train.steps=200",
    )
    cli.add_config_argument(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        type=path_or_url,
        metavar="DIR",
        help="directory of the run, or its URL in a bucket",
    )
    parser.add_argument(
        "--mode", choices=("train", "eval"), default="train", help="train and evaluate, or only evaluate"
    )
    parser.add_argument(
        "--profile",
        metavar="steps=FIRST:LAST",
        help="write a trace of these steps to DIR/tensorboard, for XProf or TensorBoard",
    )
    cli.add_step_argument(parser)
    cli.add_weights_argument(parser)
    cli.add_process_arguments(parser)
    arguments, config = cli.parse_with_config(parser)
    if arguments.step is not None and arguments.mode == "train":
        raise UsageError("--step needs --mode eval: training resumes from the newest checkpoint")
    if arguments.weights is not None and arguments.mode == "train":
        raise UsageError("--weights needs --mode eval: training evaluates both")
    cli.setup_logging()

    # Imported late, so that --help and a mistake in the config do not wait for them.
    import jax

    from inti_jax.distributed import backend, joining
    from inti_jax.evaluation import evaluate
    from inti_jax.runs import backbone, profiling
    from inti_jax.training import loop

    profile = profiling.Steps.parse(arguments.profile) if arguments.profile is not None else None
    if profile is not None and arguments.mode != "train":
        raise UsageError("--profile traces training steps: it cannot be used with --mode eval")
    flags = (arguments.coordinator_address, arguments.process_count, arguments.process_id)
    with joining.joined(*flags, config.hosts):
        workdir = run_path(arguments.workdir)
        if arguments.mode == "train":
            backbone.check_early(config, workdir)
        backend.start()
        cli.setup_logging(jax.process_index())
        if arguments.mode == "train":
            loop.train(config, workdir, profile)
        else:
            evaluate.evaluate_run(config, workdir, arguments.step, arguments.weights)


if __name__ == "__main__":
    run_command(main)
