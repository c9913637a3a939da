"""Compare runs: `python -m inti_jax.report RUN... --out DIR` prints a table and writes a page."""

import argparse

from inti_jax import cli
from inti_jax.cli import tables
from inti_jax.host.command import run_command
from inti_jax.host.paths import output_path, run_path


def main(prog: str = "python -m inti_jax.report") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compares runs in a table and a page. A run's row is the evaluation of its newest "
        "checkpoint with its own views and dataset. Other evaluations (`main --mode eval`) get extra rows "
        "that name the difference.",
    )
    parser.add_argument("runs", nargs="+", type=run_path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--out", required=True, type=output_path, metavar="DIR", help="directory for the report's files"
    )
    parser.add_argument("--title", default="Comparison of runs")
    arguments = parser.parse_args()
    cli.setup_logging()

    from inti_jax.reports import writing  # late: --help need not wait for JAX

    print(tables.for_stdout(writing.write(arguments.runs, arguments.out, arguments.title, timed=True)))


if __name__ == "__main__":
    run_command(main)
