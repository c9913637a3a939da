"""Train adaptation methods x compressors x seeds: `python -m inti_jax.ablate --data_dir data --out DIR`."""

import argparse
from collections.abc import Iterable

from inti_jax import cli
from inti_jax.errors import UsageError, run_command
from inti_jax.host.paths import local_path
from inti_jax.training import ablation
from inti_jax.training.ablation import COMPRESSIONS, METHODS


def main(prog: str = "python -m inti_jax.ablate") -> None:
    """Parse the arguments, train all combinations, and write and print the table.

    Usage texts call the command `prog`.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains adaptation methods x compressors x seeds on motion_digits and tabulates them. "
        "Resumes if --out has results of an earlier start.",
        epilog="example: %(prog)s --data_dir data --out runs/ablation --methods full,lora "
        "--compressions none,inti --seeds 0",
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        type=local_path,
        help="directory of all prepared datasets; missing ones are prepared",
    )
    parser.add_argument(
        "--out", required=True, type=local_path, metavar="DIR", help="directory for the runs and the table"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help=f"default: {','.join(METHODS)}")
    parser.add_argument(
        "--compressions", default=",".join(COMPRESSIONS), help=f"default: {','.join(COMPRESSIONS)}"
    )
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--steps", type=int, default=400, help="steps of each run (default 400)")
    parser.add_argument(
        "--results",
        type=local_path,
        metavar="FILE",
        help="Markdown file whose ablation section to replace; the plot is written beside it",
    )
    arguments = parser.parse_args()
    methods = _chosen("methods", arguments.methods, METHODS)
    compressions = _chosen("compressions", arguments.compressions, COMPRESSIONS)
    seeds = _seeds(arguments.seeds)
    if arguments.steps < 1:
        raise UsageError(f"--steps is {arguments.steps}: it should be at least 1")
    cli.setup_logging()

    ablation.train_all(arguments.data_dir, arguments.out, methods, compressions, seeds, arguments.steps)
    cells = ablation.collect(arguments.out)
    ablation.write(cells, arguments.out, arguments.results)
    print(ablation.table(cells))


def _chosen(option: str, text: str, valid: Iterable[str]) -> list[str]:
    """Split a list of names at its commas. Raises UsageError for a name that is not in `valid`."""
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in valid]:
        raise UsageError(f"--{option}: `{unknown[0]}` is none of {', '.join(valid)}")
    return names


def _seeds(text: str) -> list[int]:
    """Split a list of seeds at its commas. Raises UsageError for what is no whole number."""
    try:
        return [int(seed) for seed in dict.fromkeys(text.split(","))]
    except ValueError:
        raise UsageError(f"--seeds {text}: give whole numbers separated by commas") from None


if __name__ == "__main__":
    run_command(main)
