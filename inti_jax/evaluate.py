"""Print what runs predicted: `python -m inti_jax.evaluate RUN... [--against RUN...] [--ensemble]`."""

import argparse
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.cli import tables
from inti_jax.cli.tables import Table
from inti_jax.errors import UsageError, UserError
from inti_jax.host.command import run_command
from inti_jax.host.paths import run_path

if TYPE_CHECKING:
    from inti_jax.evaluation.analysis import Comparison, Evaluated, Figures

log = logging.getLogger("inti_jax")

# Classes that the tables show, of those with the lowest figures or the largest differences.
_SHOWN = 10

_NAMES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "map": "mAP"}

_EPILOG = """\
Intervals are of 95 %%: Wilson's for top-1, top-5 and classes, else the bootstrap's over videos. ECE is the
expected calibration error in 15 bins. The paired test is McNemar's exact one; with several runs a side it is
the sign test of each video's mean difference. docs/predictions.md describes files, figures and tests.

examples:
  %(prog)s runs/mine
  %(prog)s runs/a runs/b runs/c --ensemble
  %(prog)s runs/mean-seed0 runs/mean-seed1 --against runs/inti-seed0 runs/inti-seed1
"""


def main(prog: str = "python -m inti_jax.evaluate") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Prints figures with intervals, by class and by number of views, from the predictions "
        "that evaluations keep, and compares runs on the same videos. Nothing is evaluated again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=run_path,
        metavar="RUN",
        help="run directories, or files in their predictions/",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=run_path,
        metavar="RUN",
        default=[],
        help="compare the others with these runs, as two sides of several seeds or folds each (default: "
        "compare the first run with each other one)",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="add the ensemble of the runs, and of those of --against: the mean of their probabilities",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with all classes")
    cli.add_step_argument(parser)
    cli.add_weights_argument(parser)
    arguments = parser.parse_args()
    if arguments.ensemble and len(arguments.runs) < 2:
        raise UsageError("--ensemble needs two runs or more")
    if len(set(arguments.against)) < len(arguments.against) or len(set(arguments.runs)) < len(arguments.runs):
        raise UsageError("a run is given twice")
    cli.setup_logging()

    from inti_jax.evaluation import analysis  # late: --help need not wait for JAX

    shown: list[Figures] = []  # by the order of the command line

    def load(paths: Sequence[Path]) -> "list[Evaluated]":
        """Read the runs and compute their figures, keeping the views of one at a time."""
        found = []
        for path in paths:
            each = analysis.load(path, step=arguments.step, weights=arguments.weights, views=True)
            shown.append(analysis.summarize(each))
            found.append(dataclasses.replace(each, views=None))
        return found

    first, second = load(arguments.runs), load(arguments.against)
    sides = [(first, second)] if second else [([first[0]], [each]) for each in first[1:]]
    if arguments.ensemble:
        ensembles = [analysis.ensemble(side) for side in (first, second) if side]
        shown += [analysis.summarize(each) for each in ensembles]
        sides.append((ensembles[:1], ensembles[1:]) if second else (first[:1], ensembles))
    comparisons = []
    for pair in sides:
        try:
            comparisons.append(analysis.compare(*pair))
        except UserError as error:
            if second:  # asked for
                raise
            log.warning("no comparison: %s", error)
    if arguments.json:
        print(json.dumps(_as_json(shown, comparisons), indent=2))
    else:
        print(_as_text(shown, comparisons))


def _as_json(shown: "Sequence[Figures]", comparisons: "Sequence[Comparison]") -> dict[str, Any]:
    """Turn named tuples into objects, arrays into lists, and NaN into null."""
    from inti_jax.evaluation.statistics import LEVEL

    return {
        "level": LEVEL,
        "runs": [_plain(figures) for figures in shown],
        "comparisons": [_plain(comparison) for comparison in comparisons],
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_text(shown: "Sequence[Figures]", comparisons: "Sequence[Comparison]") -> str:
    parts = [_table(shown)]
    for figures in shown:
        if figures.by_views:
            values = ", ".join(f"{views}: {100 * value:.1f}" for views, value in figures.by_views)
            parts.append(f"{figures.name}: {_NAMES[figures.main]} by the number of views: {values}")
    for figures in shown:
        lowest = sorted(figures.classes, key=lambda each: each.value)[:_SHOWN]
        rows = [[each.name, _with_interval(each), str(each.videos)] for each in lowest]
        title = f"{figures.name}: the lowest {len(lowest)} of {len(figures.classes)} classes"
        table = Table(["class", _NAMES[figures.main], "videos"], rows)
        parts.append(f"{title}\n\n{tables.for_stdout(table)}")
    return "\n\n".join([*parts, *map(_comparison, comparisons)])


def _table(shown: "Sequence[Figures]") -> str:
    names = list(dict.fromkeys(name for figures in shown for name in figures.figures))
    headers = ["run", "step", "weights", "views", *(_NAMES[name] for name in names)]
    rows = []
    for figures in shown:
        own = [figures.figures.get(name) for name in names]
        rows.append(
            [
                figures.name,
                "-" if figures.step is None else str(figures.step),
                figures.weights or "-",
                figures.views or "-",
                *("-" if each is None else _with_interval(each) for each in own),
                f"{figures.nll.value:.3f} [{figures.nll.low:.3f}, {figures.nll.high:.3f}]",
                f"{100 * figures.ece:.1f}",
                str(figures.evaluated),
                str(figures.missing),
            ]
        )
    best = [
        tables.best(
            [figures.figures[name].value if name in figures.figures else None for figures in shown], column
        )
        for column, name in enumerate(names, start=len(headers) - len(names))
    ]
    best.append(tables.best([figures.nll.value for figures in shown], len(headers), lowest=True))
    best.append(tables.best([figures.ece for figures in shown], len(headers) + 1, lowest=True))
    table = Table([*headers, "NLL", "ECE", "videos", "missing"], rows, set().union(*best))
    return tables.for_stdout(table)


def _comparison(found: "Comparison") -> str:
    low, high = 100 * found.difference.low, 100 * found.difference.high
    lines = [
        f"{', '.join(found.first)} -> {', '.join(found.second)}: {_NAMES[found.main]} "
        f"{100 * found.values[0]:.1f} -> {100 * found.values[1]:.1f}, a difference of "
        f"{100 * found.difference.value:+.1f} [{low:+.1f}, {high:+.1f}] points over {found.videos} videos"
        + (f" ({found.left_out} more are not in all runs)" if found.left_out else "")
    ]
    if found.over_runs is not None:
        low, high = 100 * found.over_runs.low, 100 * found.over_runs.high
        lines.append(f"with the runs as units too: [{low:+.1f}, {high:+.1f}] points")
    if found.signs is not None:
        lines.append(
            f"better on {found.signs.better} videos, worse on {found.signs.worse}: p = {found.signs.p:.3g} "
            f"({'McNemar' if len(found.first) == len(found.second) == 1 else 'sign test'}, exact)"
        )
    changed = [each for each in found.classes if each.first != each.second]
    if not changed:
        return "\n".join(lines)
    lines.append(f"{len(changed)} of {len(found.classes)} classes change, those most:")
    chosen = changed if len(changed) <= _SHOWN else [*changed[: _SHOWN // 2], *changed[-_SHOWN // 2 :]]
    rows = [
        [
            each.name,
            f"{100 * (each.second - each.first):+.1f}",
            f"{100 * each.first:.1f}",
            f"{100 * each.second:.1f}",
            str(each.videos),
            "-" if each.q is None else f"{each.q:.2g}",
        ]
        for each in reversed(chosen)
    ]
    # The better side of each class.
    better = {(row, 3 if each.second > each.first else 2) for row, each in enumerate(reversed(chosen))}
    table = Table(["class", "points", "from", "to", "videos", "q"], rows, better)
    return "\n".join(lines) + f"\n\n{tables.for_stdout(table)}"


def _with_interval(figure: Any) -> str:
    """Format a share in per cent, with its interval where it has one."""
    if figure.low is None:
        return f"{100 * figure.value:.1f}"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


if __name__ == "__main__":
    run_command(main)
