"""Compares runs: `python -m inti_jax.report RUN... --out DIR` prints a table and draws their curves.

A run's own `report.html` is the same for that run alone.
"""

import argparse
import base64
import dataclasses
import html
import io
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.errors import UserError, naming, run_command
from inti_jax.paths import local_path
from inti_jax.run import RunRecord
from inti_jax.writers import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMED_BATCH = 16
_TIMED_ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Summary:
    """One row of the table. `inference_clips` is None where it was not timed."""

    name: str
    top1: float
    top5: float
    gmacs: float  # per view
    inference_clips: float | None  # per second, on this machine
    training_clips: float | None  # per second, over the whole run, input included; None if not trained
    parameters: int


def _per_second(clips: float | None) -> str:
    return "-" if clips is None else f"{clips:.0f}"


_COLUMNS = (
    ("run", lambda row: row.name),
    ("top-1", lambda row: f"{100 * row.top1:.1f}"),
    ("top-5", lambda row: f"{100 * row.top5:.1f}"),
    ("GMACs/view", lambda row: f"{row.gmacs:.4g}"),
    ("inference clips/s", lambda row: _per_second(row.inference_clips)),
    ("training clips/s", lambda row: _per_second(row.training_clips)),
    ("parameters", lambda row: f"{row.parameters:,}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inti_jax.report", description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="directories of runs")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="for the report's files")
    parser.add_argument("--title", default="Comparison of runs")
    arguments = parser.parse_args()
    cli.setup_logging()
    print(write(arguments.runs, arguments.out, arguments.title, timed=True))


def write(workdirs: Sequence[Path], out: Path, title: str, *, timed: bool) -> str:
    """Writes report.html, curves.png and report.json to `out`, and returns the table as text.

    With `timed`, each model's forward pass is timed on this machine, in turns. Raises UserError for a run
    that was not evaluated.
    """
    records = {workdir: RunRecord.read(workdir) for workdir in workdirs}
    metrics = {workdir: read_metrics(workdir) for workdir in workdirs}
    speeds = _time_inference(records) if timed else dict.fromkeys(workdirs)
    rows = [_summarize(path, records[path], metrics[path], speeds[path]) for path in workdirs]
    picture = _curves({path.name: metrics[path] for path in workdirs})
    cells = [[render(row) for _, render in _COLUMNS] for row in rows]
    headers = [name for name, _ in _COLUMNS]

    out.mkdir(parents=True, exist_ok=True)
    table = json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n"
    page = _page(title, headers, cells, picture, records)
    for name, content in (
        ("curves.png", picture),
        ("report.json", table.encode()),
        ("report.html", page.encode()),
    ):
        with naming(out / name):
            (out / name).write_bytes(content)
    return text_table(headers, cells)


def _summarize(
    workdir: Path, record: RunRecord, metrics: list[dict[str, Any]], speed: float | None
) -> Summary:
    from inti_jax import state

    evaluations = [entry for entry in metrics if entry["split"] == "val"]
    steps = [entry["step_seconds"] for entry in metrics if entry["split"] == "train"]
    if not evaluations:
        raise UserError(f"{workdir} was not evaluated: run main on it first")
    model = state.abstract_model(record)
    shapes = state.parameter_shapes(model).values()
    return Summary(
        name=workdir.name,
        top1=evaluations[-1]["top1"],
        top5=evaluations[-1]["top5"],
        gmacs=model.macs(record.config.data.num_frames) / 1e9,
        inference_clips=speed,
        training_clips=record.config.train.global_batch / statistics.median(steps) if steps else None,
        parameters=sum(math.prod(shape.shape) for shape in shapes),
    )


def _time_inference(records: dict[Path, RunRecord]) -> dict[Path, float]:
    """Clips a second of each run's model on one device, from the median of rounds taken in turns."""
    import numpy as np

    from inti_jax.classifier import load

    models = {workdir: load(workdir) for workdir in records}
    seconds: dict[Path, list[float]] = {workdir: [] for workdir in records}
    for _ in range(_TIMED_ROUNDS + 1):
        for workdir, model in models.items():
            data = records[workdir].config.data
            shape = (_TIMED_BATCH, data.num_frames, data.resolution, data.resolution, 3)
            video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            started = time.perf_counter()
            model(video)
            seconds[workdir].append(time.perf_counter() - started)
    # The first round compiles.
    return {workdir: _TIMED_BATCH / statistics.median(taken[1:]) for workdir, taken in seconds.items()}


def _curves(metrics: dict[str, list[dict[str, Any]]]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss, accuracy, speed) = pyplot.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    for name, records in metrics.items():
        train, val = ([each for each in records if each["split"] == split] for split in ("train", "val"))
        steps = [each["step"] for each in train]
        loss.plot(steps, [each["loss"] for each in train], label=name)
        accuracy.plot(
            [each["step"] for each in val],
            [100 * each["top1"] for each in val],
            marker="o",
            markersize=4,
            label=name,
        )
        (line,) = speed.plot(steps, [1000 * each["step_seconds"] for each in train], label=name)
        waits = [1000 * each["step_seconds"] * each["data_wait"] for each in train]
        speed.plot(steps, waits, color=line.get_color(), linestyle=":", label=f"{name}, waiting for data")
    labels = ((loss, "training loss"), (accuracy, "validation top-1 (%)"), (speed, "ms a step"))
    for axes, label in labels:
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return to_png(figure)


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG file; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    return buffer.getvalue()


def text_table(headers: list[str], cells: list[list[str]]) -> str:
    """The cells in columns, the first to the left and the others, which are figures, to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [headers, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _page(
    title: str,
    headers: list[str],
    cells: list[list[str]],
    picture: bytes,
    records: dict[Path, RunRecord],
) -> str:
    """A page that needs nothing beside it."""
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
    )
    configs = "".join(
        f"<details><summary>{html.escape(path.name)}: config</summary><pre>"
        f"{html.escape(json.dumps(dataclasses.asdict(record), indent=2))}</pre></details>"
        for path, record in records.items()
    )
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
<table><tr>{head}</tr>{body}</table>
<p>1 MAC is one multiply-accumulate. A view is one clip in one spatial crop. Inference is timed on random
frames in batches of {_TIMED_BATCH}, training over the whole run with its input.</p>
<img alt="training loss, validation top-1 and time of a step, by step" src="data:image/png;base64,{image}">
{configs}
</html>
"""


if __name__ == "__main__":
    run_command(main)
