"""Label video files with a trained run: `python -m inti_jax.predict --checkpoint RUN VIDEO...`."""

import argparse
import contextlib
import csv
import itertools
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from inti_jax import cli
from inti_jax.cli import tables, terminal
from inti_jax.errors import UsageError, UserError, naming
from inti_jax.evaluation import inputs
from inti_jax.host import stores
from inti_jax.host.command import run_command
from inti_jax.host.paths import input_path, local_path, output_path
from inti_jax.streaming import long_videos

if TYPE_CHECKING:
    from inti_jax.hub.names import Place
    from inti_jax.runs.checkpoint import Step
    from inti_jax.runs.evaluations import Weights

log = logging.getLogger("inti_jax")

# `{video, predictions: [{label, probability}]}`, best first, or `{video, error}`.
Result = dict[str, Any]
Write = Callable[[Result], None]


def main(prog: str = "python -m inti_jax.predict") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Labels video files with a trained run, using the same sampling, decoding and views as "
        "its evaluation. Writes each result as soon as it is known.",
        epilog="example: %(prog)s --checkpoint runs/mine my_videos --out labels.csv",
    )
    inputs.add_arguments(parser)
    parser.add_argument(
        "--topk", type=int, default=5, metavar="K", help="number of labels for each video (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list with an entry for each video")
    parser.add_argument(
        "--out",
        type=output_path,
        metavar="F.csv|F.json",
        help="write a file instead of printing: a CSV file with one row a video, which has its status (ok or "
        "missing), the reason if missing, and the K labels with their probabilities; or what --json prints. "
        "With --timeline: one row a segment, or F.vtt for subtitles (WebVTT)",
    )
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="classify by these class names instead of the run's: a file with one a line, or names "
        "separated by commas. Needs a run whose classifier started from class names "
        "(model.head.init=text). --pretrained gives its CLIP if the path that the run used has changed",
    )
    long_videos.add_arguments(parser)
    arguments = parser.parse_args()
    long_videos.check(arguments)
    if arguments.topk < 1:
        raise UsageError(f"--topk is {arguments.topk}: it should be at least 1")
    if arguments.out is not None and not arguments.timeline:
        inputs.check_output(arguments.out, ".csv", ".json")
    cli.setup_logging()
    videos = inputs.collect(arguments)
    labels = None if arguments.labels is None else _labels(arguments.labels)

    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax.runs import compilation

    compilation.cache_for_user()
    if arguments.timeline:
        long_videos.label(arguments, _single(videos), labels)
        return

    results = predict_files(
        arguments.checkpoint,
        videos.paths,
        arguments.topk,
        arguments.pretrained,
        arguments.step,
        labels=labels,
        weights=arguments.weights,
        # A bar would be in the way of a list that is printed piece by piece.
        progress="" if arguments.json and sys.stdout.isatty() else "predict",
    )
    total, failed = len(videos.paths) + len(videos.left_out), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(results))
        writers: list[Write] = []
        if arguments.out is not None and arguments.out.suffix.lower() == ".csv":
            writers.append(stack.enter_context(_csv(arguments.out, arguments.topk)))
        elif arguments.out is not None:
            writers.append(stack.enter_context(_json(arguments.out)))
        if arguments.json:
            writers.append(stack.enter_context(_json()))
        elif arguments.out is None:
            writers.append(_table(videos.paths) if sys.stdout.isatty() else _print)
        left_out = ({"video": str(path), "error": reason} for path, reason in videos.left_out)
        for result in itertools.chain(results, left_out):
            for write in writers:
                write(result)
            if "error" in result:
                failed += 1
                terminal.say(f"error: {result['video']}: {result['error']}", sys.stderr)
    if arguments.out is not None:
        log.info("%s: %d videos, %d without a label", arguments.out, total, failed)
    if failed:
        raise UserError(f"{failed} of {total} videos could not be labelled")


def predict_files(
    checkpoint: "Place",
    paths: Sequence[Path],
    topk: int,
    pretrained: "Place | None" = None,
    step: "Step" = None,
    *,
    labels: Sequence[str] | None = None,
    weights: "Weights | None" = None,
    progress: str = "",
) -> Generator[Result, None, None]:
    """Yield `{video, predictions: [{label, probability}]}`, best first, or `{video, error}` for each path.

    Results come in the order of the paths, as soon as they are computed: see `inference.FileModel`.
    """
    # Imported late: --help and a wrong argument should not wait for JAX.
    import numpy as np

    from inti_jax.evaluation import inference

    model = inference.FileModel(checkpoint, pretrained=pretrained, step=step, weights=weights, labels=labels)
    labels = model.record.dataset.labels
    with contextlib.closing(model(paths, progress=progress)) as outcomes:
        for found in outcomes:
            if found.values is None:
                yield {"video": stores.shown(str(found.path)), "error": found.error}
                continue
            probabilities = found.values.mean(axis=0)
            best = np.argsort(-probabilities, kind="stable")[:topk]
            entries = [{"label": labels[k], "probability": float(probabilities[k])} for k in best]
            yield {"video": stores.shown(str(found.path)), "predictions": entries}


def _single(videos: inputs.Videos) -> Path:
    """Return the one video that was named. Raises UserError and UsageError where there is none, or more."""
    for path, reason in videos.left_out:
        raise UserError(f"{stores.shown(str(path))}: {reason}")
    if len(videos.paths) != 1:
        raise UsageError(f"--timeline takes one video, not {len(videos.paths)}")
    return videos.paths[0]


def _labels(text: str) -> tuple[str, ...]:
    """Read the value of --labels: a list with commas, or else the path of a file."""
    from inti_jax.data.builders.annotations import read_labels

    if "," in text and (stores.is_url(text) or not local_path(text).is_file()):
        return tuple(label.strip() for label in text.split(","))
    return read_labels(input_path(text))


def _print(result: Result) -> None:
    if "error" not in result:
        lines = (f"  {entry['probability']:.3f}  {entry['label']}" for entry in result["predictions"])
        print(result["video"], *lines, sep="\n", flush=True)


def _table(paths: Sequence[Path]) -> Write:
    """Print a table for a terminal, which grows by the labels of each video."""
    rows = tables.Rows(["video", "probability", "label"], list(map(str, paths)))

    def write(result: Result) -> None:
        if "error" not in result:
            names = itertools.chain([result["video"]], itertools.repeat(""))
            entries = zip(names, result["predictions"], strict=False)
            lines = [[name, f"{entry['probability']:.3f}", entry["label"]] for name, entry in entries]
            rows.add(lines, {(0, 1), (0, 2)})

    return write


@contextlib.contextmanager
def _json(path: Path | None = None) -> Iterator[Write]:
    """Write a JSON list entry by entry, on stdout or to a file, which the first entry makes or empties.

    Where an error cuts the list short it is closed. Before the first entry nothing is written.
    """
    file: TextIO | None = None

    def put(text: str) -> None:
        assert file is not None
        with naming(path) if path else contextlib.nullcontext():
            file.write(text)
            file.flush()

    def write(result: Result) -> None:
        nonlocal file
        start = ",\n"
        if file is None:
            file, start = sys.stdout if path is None else path.open("w", encoding="utf-8"), "[\n"
        put(start + textwrap.indent(json.dumps(result, indent=2), "  "))

    try:
        yield write
    finally:
        if file is not None:
            put("\n]\n")
            if path is not None:
                file.close()


@contextlib.contextmanager
def _csv(path: Path, topk: int) -> Iterator[Write]:
    """Write a CSV file a row at a time. The first row makes the file, or empties it."""
    header = ["video", "status", "reason", "label", "probability"]
    for place in range(2, topk + 1):
        header += [f"label_{place}", f"probability_{place}"]
    file: TextIO | None = None

    def write(result: Result) -> None:
        nonlocal file
        with naming(path):
            if file is None:
                # Names that are not UTF-8 are written as their bytes.
                file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
                csv.writer(file).writerow(header)
            error = result.get("error", "")
            row = [result["video"], "missing" if error else "ok", error]
            for entry in result.get("predictions", ()):
                row += [entry["label"], f"{entry['probability']:.6g}"]
            csv.writer(file).writerow(row + [""] * (len(header) - len(row)))
            file.flush()

    try:
        yield write
    finally:
        if file is not None:
            with naming(path):
                file.close()


if __name__ == "__main__":
    run_command(main)
