"""Tabulate the cells: a row for each method with each compressor, and paired differences of rows.

A row pools the runs of all folds and seeds. Every video is validated in one fold, so the folds together are
one set of videos. A video's value in a row is the share of seeds that classify it correctly.
"""

import dataclasses
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from inti_jax import drawing
from inti_jax.ablation.cells import Cell
from inti_jax.ablation.experiments import Experiment
from inti_jax.cli import tables
from inti_jax.cli.tables import Table
from inti_jax.errors import UsageError, naming
from inti_jax.evaluation import statistics
from inti_jax.evaluation.statistics import Estimate, Outcome, Paired
from inti_jax.host.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("inti_jax")


@dataclasses.dataclass(frozen=True)
class Row:
    """All runs of one method with one compressor and one number of steps."""

    method: str
    compression: str
    steps: int
    cells: tuple[Cell, ...]

    @property
    def videos(self) -> Float[np.ndarray, " N"]:
        """The share of seeds that classify each video correctly, over the folds that ran."""
        found: dict[tuple[int | None, str], list[bool]] = defaultdict(list)
        for cell in self.cells:
            for video, right in cell.correct.items():
                found[cell.job.fold, video].append(right)
        return np.array([np.mean(rights) for rights in found.values()])

    @property
    def by_seed(self) -> dict[int, float]:
        """The share of correctly classified videos for each seed, over the folds that ran."""
        found: dict[int, list[bool]] = defaultdict(list)
        for cell in self.cells:
            found[cell.job.seed].extend(cell.correct.values())
        return {seed: float(np.mean(rights)) for seed, rights in sorted(found.items())}

    def outcomes(self, folds_and_seeds: set[tuple[int | None, int]]) -> list[Outcome]:
        """Return the outcomes of the runs of these folds and seeds, as `Paired` takes them."""
        return [
            Outcome(
                cell.job.fold,
                np.array(list(cell.labels)),
                np.unique(list(cell.labels.values()), return_inverse=True)[1],
                np.array(list(cell.correct.values())),
            )
            for cell in self.cells
            if (cell.job.fold, cell.job.seed) in folds_and_seeds
        ]

    @property
    def folds_and_seeds(self) -> set[tuple[int | None, int]]:
        """The folds and seeds that ran."""
        return {(cell.job.fold, cell.job.seed) for cell in self.cells}


def rows(cells: Iterable[Cell], experiment: Experiment) -> list[Row]:
    """Group the cells to rows, in the order of the experiment's methods and compressors.

    Logs a warning where runs of one fold were trained on different datasets.
    """
    found: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    datasets: dict[int | None, set[str]] = defaultdict(set)
    for cell in cells:
        job = cell.job
        if job.method in experiment.methods and job.compression in experiment.compressions:
            found[job.method, job.compression, job.steps].append(cell)
            datasets[job.fold].add(cell.dataset)
    for fold, hashes in datasets.items():
        if len(hashes) > 1:
            log.warning("the table compares runs on different datasets%s", f" of fold {fold}" if fold else "")
    methods, compressions = list(experiment.methods), list(experiment.compressions)
    keys = sorted(found, key=lambda key: (methods.index(key[0]), compressions.index(key[1]), key[2]))
    return [Row(*key, tuple(found[key])) for key in keys]


def table(found: Sequence[Row]) -> Table:
    """Tabulate the rows: costs, number of runs, and top-1 in per cent.

    The interval of top-1 is of 95 %, with videos as units.
    """
    headers = ["method", "compression", "GMACs per view", "share", "trained parameters", "steps", "runs"]
    headers += ["top-1", "interval", "by seed"]
    means = [statistics.mean(row.videos) for row in found]
    lines = []
    for row, top1 in zip(found, means, strict=True):
        cell = row.cells[0]
        lines.append(
            [
                row.method,
                row.compression,
                f"{cell.gmacs:.4g}",
                f"{100 * cell.share:.1f} %",
                f"{cell.trained:,}",
                str(row.steps),
                str(len(row.cells)),
                f"{100 * top1.value:.1f}",
                _range(top1),
                ", ".join(f"{100 * value:.1f}" for value in row.by_seed.values()),
            ]
        )
    best = tables.best([top1.value for top1 in means], headers.index("top-1"))
    best |= tables.best([row.cells[0].gmacs for row in found], headers.index("GMACs per view"), lowest=True)
    return Table(headers, lines, best)


def differences(found: Sequence[Row]) -> Table:
    """Tabulate the paired differences of all pairs of rows of one method, in points of top-1.

    Rows are compared on the folds and seeds that both have. The first interval has videos as units, the
    second videos and seeds. `better` and `worse` count videos, and p is of the sign test: see `Paired`.
    """
    headers = ["method", "compression", "against", "runs each", "difference", "interval", "over seeds"]
    headers += ["better, worse", "p"]
    lines, values = [], []
    for first, second in itertools.combinations(found, 2):
        common = first.folds_and_seeds & second.folds_and_seeds
        if first.method != second.method or not common:
            continue
        pair = Paired(first.outcomes(common), second.outcomes(common))
        difference, over_seeds, signs = pair.difference(), pair.difference_over_runs(), pair.signs()
        values.append(difference.value)
        lines.append(
            [
                first.method,
                _with_steps(second, first),
                _with_steps(first, second),
                str(len(common)),
                f"{100 * difference.value:+.1f}",
                _range(difference),
                "" if over_seeds is None else _range(over_seeds),
                f"{signs.better}, {signs.worse}",
                f"{signs.p:.3f}",
            ]
        )
    return Table(headers, lines, tables.best(values, headers.index("difference")))


def _with_steps(row: Row, other: Row) -> str:
    return row.compression if row.steps == other.steps else f"{row.compression}, {row.steps} steps"


def _range(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def write(found: Sequence[Row], name: str, out: Path, results: Path | None) -> None:
    """Write ablation.md, differences.md and pareto.png to `out`, and update the Markdown file `results`.

    In `results` the tables and the plot replace the section of the experiment `name`; the plot lies beside it
    as `name`.png. Raises UsageError where `results` has no such section, and OSError, with the file's name,
    where a file cannot be written.
    """
    picture = drawing.png(lambda pyplot: _pareto(pyplot, found), "plot of top-1 against GMACs")
    write_whole(out / "ablation.md", table(found).markdown + "\n")
    write_whole(out / "differences.md", differences(found).markdown + "\n")
    _write_picture(out / "pareto.png", picture)
    if results is not None:
        begin, end = (f"<!-- {name}: {text} -->" for text in ("written by inti_jax.ablate", "end"))
        text = results.read_text()
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise UsageError(
                f"--results {results}: it should have the lines {begin} and {end}, to write the table between"
            )
        _write_picture(results.parent / f"{name}.png", picture)
        section = [begin, table(found).markdown]
        if picture is not None:
            section.append(f"![top-1 against GMACs per view]({name}.png)")
        section += ["Paired differences:", differences(found).markdown, end]
        write_whole(results, before + "\n\n".join(section) + after)


def _write_picture(path: Path, picture: bytes | None) -> None:
    """Write the PNG file; where `picture` could not be drawn, delete that of an earlier table."""
    if picture is None:
        path.unlink(missing_ok=True)
    else:
        with naming(path):
            path.write_bytes(picture)


def _pareto(pyplot: Any, found: Sequence[Row]) -> "Figure":
    """Plot top-1 with its interval against GMACs per view: a colour a compressor, a marker a method."""
    methods, compressions = (
        list(dict.fromkeys(names))
        for names in ((row.method for row in found), (row.compression for row in found))
    )
    palette = pyplot.get_cmap("tab20")
    colours = {name: palette(i % 20) for i, name in enumerate(compressions)}
    markers = dict(zip(methods, itertools.cycle("osD^vPX*"), strict=False))
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for row in found:
        top1 = statistics.mean(row.videos)
        spread = [[100 * (top1.value - top1.low)], [100 * (top1.high - top1.value)]]
        axes.errorbar(
            row.cells[0].gmacs,
            100 * top1.value,
            yerr=spread,
            color=colours[row.compression],
            marker=markers[row.method],
            capsize=3,
        )
    names: dict[Any, str] = {}
    for name in methods:
        names[axes.plot([], [], color="grey", marker=markers[name], linestyle="")[0]] = name
    for name in compressions:
        names[axes.plot([], [], color=colours[name], marker="s", linestyle="")[0]] = name
    axes.set_xlabel("GMACs per view")
    axes.set_ylabel("top-1 (%)")
    drawing.legend(axes, names, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
