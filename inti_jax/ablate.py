"""Train methods x compressors x folds x seeds: `python -m inti_jax.ablate --data_dir data --out DIR`."""

import argparse
from collections.abc import Iterable

from inti_jax import cli
from inti_jax.ablation.experiments import EXPERIMENTS
from inti_jax.cli.tables import for_stdout
from inti_jax.errors import UsageError
from inti_jax.host import mirrors
from inti_jax.host.command import run_command
from inti_jax.host.paths import local_path, path_or_url, run_path
from inti_jax.hub import names


def main(prog: str = "python -m inti_jax.ablate") -> None:
    """Parse the arguments, train all combinations, and write and print the table.

    Usage texts call the command `prog`.
    """
    about = "; ".join(f"{name}: {each.about}" for name, each in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains adaptation methods x compressors x folds x seeds, evaluates each, and tabulates "
        "them with paired differences. Resumes if --out has results of an earlier start. Tables: "
        f"{about}.",
        epilog="example: %(prog)s --data_dir data --out runs/ablation --methods full,lora "
        "--compressions none,inti --seeds 0",
    )
    parser.add_argument(
        "experiment", nargs="?", default="motion_digits", choices=EXPERIMENTS, help="default: motion_digits"
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        type=path_or_url,
        help="directory of all prepared datasets, a path or a gs:// URL; missing ones are prepared where "
        "they need no source",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=run_path,
        metavar="DIR",
        help="directory for the runs and the table, a path or a gs:// URL",
    )
    parser.add_argument(
        "--pretrained",
        type=_weights,
        metavar="FILE",
        help="backbone that `convert` wrote, a path, a URL or a name on the Hugging Face Hub; motion_digits "
        "trains its own without it",
    )
    parser.add_argument("--methods", help="names separated by commas; default: all of the table")
    parser.add_argument("--compressions", help="names separated by commas; default: all of the table")
    parser.add_argument("--folds", help="numbers separated by commas; default: all of the dataset")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--steps", type=int, help="steps of each run; default: the table's")
    parser.add_argument(
        "--equal_compute",
        action="store_true",
        help="give a run as many more steps as its forward pass costs less than without compression",
    )
    parser.add_argument(
        "--results",
        type=local_path,
        metavar="FILE",
        help="Markdown file whose section of this table to replace; the plot is written beside it",
    )
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.experiment]
    methods = _chosen("methods", arguments.methods, experiment.methods)
    compressions = _chosen("compressions", arguments.compressions, experiment.compressions)
    folds = _chosen("folds", arguments.folds, map(str, experiment.folds))
    steps = experiment.steps if arguments.steps is None else arguments.steps
    if steps < 1:
        raise UsageError(f"--steps is {steps}: it should be at least 1")
    seeds = _seeds(arguments.seeds)
    cli.setup_logging()

    from inti_jax.ablation import cells, tables  # late: --help need not wait for JAX

    numbers = [int(fold) for fold in folds]
    wanted = cells.jobs(
        experiment, methods, compressions, numbers, seeds, steps, equal_compute=arguments.equal_compute
    )
    with mirrors.pushed(arguments.out):
        backbone = experiment.prepare(arguments.data_dir, arguments.out, numbers, arguments.pretrained)
        cells.train_all(experiment, wanted, backbone, arguments.data_dir, arguments.out)
        rows = tables.rows(cells.read(arguments.out), experiment)
        tables.write(rows, arguments.experiment, arguments.out, arguments.results)
    shown = [tables.table(rows), tables.differences(rows)]
    # Elsewhere than on a terminal it is what the files have.
    print(*(for_stdout(table, table.markdown) for table in shown), sep="\n\n")


def _weights(text: str) -> str:
    """Check the form of a path, a URL or a name on the Hub. Raises UsageError for another text."""
    names.place(text)
    return text


def _chosen(option: str, text: str | None, valid: Iterable[str]) -> list[str]:
    """Split a list of names at its commas; None stands for all. Raises UsageError for one not in `valid`."""
    names = list(valid)
    if text is None:
        return names
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in names]:
        raise UsageError(f"--{option}: `{unknown[0]}` is none of {', '.join(names) or 'none'}")
    return chosen


def _seeds(text: str) -> list[int]:
    """Split a list of seeds at its commas. Raises UsageError for what is no whole number."""
    try:
        return [int(seed) for seed in dict.fromkeys(text.split(","))]
    except ValueError:
        raise UsageError(f"--seeds {text}: give whole numbers separated by commas") from None


if __name__ == "__main__":
    run_command(main)
