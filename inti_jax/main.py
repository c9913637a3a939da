"""The main job: `python -m inti_jax.main --config configs/X.py --workdir DIR`."""

import argparse
from pathlib import Path

from inti_jax import cli
from inti_jax.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m inti_jax.main",
        description="Trains a model and evaluates it. Goes on from DIR's newest checkpoint if it has one.",
        epilog="example: python -m inti_jax.main --config configs/quickstart.py:compression=inti "
        "--workdir runs/inti --config.train.steps=200",
    )
    cli.add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="the run's directory")
    parser.add_argument(
        "--mode", choices=("train", "eval"), default="train", help="train and evaluate, or evaluate only"
    )
    arguments, config = cli.parse_with_config(parser)
    cli.setup_logging()

    # Imported late: --help and a mistake in the config should not wait for them.
    from inti_jax import evaluate, train

    if arguments.mode == "train":
        train.train(config, arguments.workdir)
    else:
        evaluate.evaluate_run(config, arguments.workdir)


if __name__ == "__main__":
    run_command(main)
