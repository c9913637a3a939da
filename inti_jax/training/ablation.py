"""Cross adaptation methods and compressors on the embedded dataset, over several seeds, and tabulate them.

All runs start from one tiny image model, which is trained on single frames first. Runs that are evaluated
already are not run again, so a table can be made in parts and resumed. The command is `inti_jax/ablate.py`.
"""

import dataclasses
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import config, drawing
from inti_jax.errors import UsageError, naming

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("inti_jax")


# The rows and columns of the table, as arguments of configs/ablation.py.
METHODS = {
    "full": "method=full",
    "linear+temporal": "method=linear,temporal=attention",
    "st_adapter": "method=st_adapter",
    "zero_i2v": "method=zero_i2v",
    "aim": "method=aim",
    "lora": "method=lora",
}


COMPRESSIONS = {
    "none": "compression=none",
    "drop": "compression=drop",
    "mean": "compression=mean",
    "static": "compression=static",
    "inti(point)": "compression=inti,scales=point",
    "inti(local)": "compression=inti,scales=local",
    "inti(global)": "compression=inti,scales=global",
    "inti": "compression=inti",
    "tome": "compression=tome",
}


_BEGIN, _END = "<!-- ablation: written by inti_jax.ablate -->", "<!-- ablation: end -->"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method with one compressor; `top1` has the accuracy (from 0 to 1) for each seed that ran."""

    method: str
    compression: str
    gmacs: float  # per view, at inference
    trained: int  # number of parameters that train
    top1: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean top-1 over the seeds."""
        return statistics.mean(self.top1.values())


def train_all(
    data_dir: Path,
    out: Path,
    methods: Sequence[str],
    compressions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
) -> None:
    """Train and evaluate each combination in a directory of `out`, except those that are done already."""
    backbone = prepare(data_dir, out)
    # Seeds are the outer loop, so that a table that is stopped early has all its cells.
    wanted = [(m, c, seed) for seed in seeds for c in compressions for m in methods]
    for number, (method, compression, seed) in enumerate(wanted, start=1):
        log.info("run %d of %d: %s, %s, seed %d", number, len(wanted), method, compression, seed)
        overrides = {"model.pretrained": backbone, "data.data_dir": data_dir}
        spec = f"{METHODS[method]},{COMPRESSIONS[compression]},seed={seed},steps={steps}"
        _train("ablation", spec, out / _run_name(method, compression, seed), overrides)


def prepare(data_dir: Path, out: Path) -> Path:
    """Build both datasets and train the image model to start from, if missing; return the model's file."""
    from inti_jax.data import dataset
    from inti_jax.data.builders import motion_digits, still_digits
    from inti_jax.pretrained import clip_file
    from inti_jax.runs import export

    for builder in (motion_digits.MotionDigits, still_digits.StillDigits):
        if dataset.find_dataset(builder.name, data_dir) is None:
            log.info("preparing %s in %s", builder.name, data_dir)
            builder(data_dir=data_dir).build()
    backbone = out / "stills.safetensors"
    if not backbone.exists():
        _train("still_digits", "", out / "stills", {"data.data_dir": data_dir})
        arrays, description, _ = export.read_run(out / "stills")
        clip_file.write(backbone, arrays, description)
    return backbone


def _train(name: str, spec: str, workdir: Path, overrides: dict[str, Path]) -> None:
    """Train a config in `workdir`, unless it is evaluated there at its last step already.

    Raises ConfigError where `workdir` holds a run of another config.
    """
    from inti_jax.pretrained.sources import is_run
    from inti_jax.runs import evaluations
    from inti_jax.runs.record import RunRecord
    from inti_jax.training import loop

    settings = config.load_config(
        f"{config.recipes()[name]}:{spec}", [f"--config.{key}={value}" for key, value in overrides.items()]
    )
    if is_run(workdir):
        earlier = RunRecord.read(workdir)
        if evaluations.was_evaluated(workdir, settings.train.steps, evaluations.Setting.of_run(earlier)):
            # A run of another config under this one's name must not get into the table.
            RunRecord(settings, earlier.dataset, earlier.backbone).check_continues(earlier, workdir)
            log.info("%s already exists", workdir)
            return
    loop.train(settings, workdir)


def collect(out: Path) -> list[Cell]:
    """Collect the cells of all finished runs in `out`, in the order of the table.

    A run counts with its own evaluation of its last step, see `evaluations.Setting.of_run`.
    """
    from inti_jax.evaluation import report
    from inti_jax.models import freezing, parameters
    from inti_jax.runs import evaluations, state
    from inti_jax.runs.layout import config_path
    from inti_jax.runs.record import RunRecord
    from inti_jax.runs.writers.jsonl import read_metrics

    cells = []
    kinds = set()
    for method in METHODS:
        for compression in COMPRESSIONS:
            top1, record = {}, None
            for path in sorted(out.glob(f"{_run_name(method, compression, '*')}/{config_path(Path()).name}")):
                found = RunRecord.read(path.parent)
                if path.parent.name != _run_name(method, compression, found.config.train.seed):
                    continue  # a copy of a run, which counts only once
                step = report.final_step(path.parent, read_metrics(path.parent))
                own = evaluations.by_step(evaluations.read(path.parent), evaluations.Setting.of_run(found))
                if step not in own:
                    log.warning("skipping %s: it was not evaluated at its last step, %d", path.parent, step)
                    continue
                record = found
                top1[record.config.train.seed] = own[step].top1
                kinds.add((step, record.dataset.sha256))
            if record is not None:
                model = state.abstract_model(record)
                shapes = parameters.parameter_shapes(model)
                trained = sum(shapes[path].size for path in freezing.trained(record.config.model, shapes))
                gmacs = model.macs(record.config.data.num_frames, folded=True) / 1e9
                cells.append(Cell(method, compression, gmacs, trained, dict(sorted(top1.items()))))
    if len(kinds) > 1:
        said = "; ".join(f"{step} steps on dataset {sha256[:8]}" for step, sha256 in sorted(kinds))
        log.warning("the table compares runs that were trained differently: %s", said)
    return cells


def table(cells: Sequence[Cell]) -> str:
    """Format a row of Markdown for each cell, with top-1 in per cent as mean and range over seeds."""
    lines = [
        "| method | compression | GMACs per view | trained parameters | seeds | top-1 | lowest to highest |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        low, high = (f"{100 * edge(cell.top1.values()):.1f}" for edge in (min, max))
        spread = f"{low} to {high}" if len(cell.top1) > 1 else ""
        lines.append(
            f"| {cell.method} | {cell.compression} | {cell.gmacs:.4f} | {cell.trained:,} | {len(cell.top1)} "
            f"| {100 * cell.mean:.1f} | {spread} |"
        )
    return "\n".join(lines)


def write(cells: Sequence[Cell], out: Path, results: Path | None) -> None:
    """Write ablation.json, ablation.md and pareto.png to `out`, and update the Markdown file `results`.

    In `results` the table replaces the ablation section; the plot lies beside it as ablation.png. Raises
    UsageError where `results` has no such section, and OSError, with the file's name, where a file cannot be
    written.
    """
    picture = drawing.png(lambda pyplot: _pareto(pyplot, cells), "plot of top-1 against GMACs")
    _write(out / "ablation.json", json.dumps([dataclasses.asdict(c) for c in cells], indent=2) + "\n")
    _write(out / "ablation.md", table(cells) + "\n")
    _write_picture(out / "pareto.png", picture)
    if results is not None:
        text = results.read_text()
        before, begin, rest = text.partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if not begin or not end:
            raise UsageError(
                f"--results {results}: it should have the lines {_BEGIN} and {_END}, to write the table "
                "between"
            )
        _write_picture(results.parent / "ablation.png", picture)
        section = table(cells)
        if picture is not None:
            section += "\n\n![top-1 against GMACs per view](ablation.png)"
        _write(results, f"{before}{begin}\n\n{section}\n\n{end}{after}")


def _write(path: Path, text: str) -> None:
    """Write the file as a whole or not at all. An OSError names it."""
    partial = path.with_suffix(".partial")
    with naming(path):
        partial.write_text(text)
        partial.replace(path)


def _write_picture(path: Path, picture: bytes | None) -> None:
    """Write the PNG file; where `picture` could not be drawn, delete that of an earlier table."""
    if picture is None:
        path.unlink(missing_ok=True)
    else:
        with naming(path):
            path.write_bytes(picture)


def _pareto(pyplot: Any, cells: Sequence[Cell]) -> "Figure":
    """Plot top-1 against GMACs per view: a colour for each compressor, a marker for each method."""
    markers = dict(zip(METHODS, "osD^vP", strict=True))
    # Black replaces the cycle's eighth colour, which is the grey of the markers' legend.
    colours = {name: "black" if i == 7 else f"C{i}" for i, name in enumerate(COMPRESSIONS)}
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for cell in cells:
        values = [100 * value for value in cell.top1.values()]
        spread = [[100 * cell.mean - min(values)], [max(values) - 100 * cell.mean]]
        axes.errorbar(
            cell.gmacs,
            100 * cell.mean,
            yerr=spread,
            color=colours[cell.compression],
            marker=markers[cell.method],
            capsize=3,
        )
    names = {}
    for name in dict.fromkeys(cell.method for cell in cells):
        names[axes.plot([], [], color="grey", marker=markers[name], linestyle="")[0]] = name
    for name in dict.fromkeys(cell.compression for cell in cells):
        names[axes.plot([], [], color=colours[name], marker="s", linestyle="")[0]] = name
    axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("GMACs per view")
    axes.set_ylabel("top-1 (%); dashed: the ceiling without order")
    drawing.legend(axes, names, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _run_name(method: str, compression: str, seed: int | str) -> str:
    return f"{method}-{compression}-{seed}"
