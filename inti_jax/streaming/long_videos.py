"""Label a long video over time: what `predict --timeline` does."""

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inti_jax.errors import UsageError, UserError, naming
from inti_jax.evaluation import inputs
from inti_jax.host.paths import output_path
from inti_jax.streaming import frame_arguments

if TYPE_CHECKING:
    from inti_jax.streaming.timeline import Point

log = logging.getLogger("inti_jax")

SUFFIXES = (".csv", ".json", ".vtt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a command's, in a group of their own."""
    group = parser.add_argument_group(
        "labels over time", "of one video of any length, from windows that slide over it"
    )
    group.add_argument("--timeline", action="store_true", help="give labels over time instead of one answer")
    frame_arguments.add_arguments(group)
    group.add_argument("--start", type=float, metavar="S", help="second at which to start")
    group.add_argument("--end", type=float, metavar="S", help="second at which to end")
    group.add_argument(
        "--smooth", type=float, metavar="S", help="average the probabilities over S seconds (default 0)"
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="leave out labels with a lower probability (default 0; 0.5 where labels do not exclude each "
        "other)",
    )
    group.add_argument(
        "--picture", type=output_path, metavar="F.png|F.svg", help="also draw the probabilities over time"
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError where the values of these arguments, or of `--out`, are no use to the command."""
    names = ("every", "stride", "fps", "start", "end", "smooth", "threshold", "picture")
    given = [name for name in names if getattr(arguments, name) is not None]
    if not arguments.timeline:
        if given:
            raise UsageError(f"--{given[0]} is of labels over time: give --timeline too")
        return
    frame_arguments.check(arguments)
    for name in ("start", "smooth"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"--{name} is {value}: it should be seconds, at least 0")
    if arguments.end is not None and not arguments.end > (arguments.start or 0.0):
        raise UsageError(f"--end is {arguments.end}: it should be behind the start, {arguments.start or 0.0}")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UsageError(f"--threshold is {arguments.threshold}: it should be a probability")
    if arguments.out is not None:
        inputs.check_output(arguments.out, *SUFFIXES)
    if arguments.picture is not None:
        inputs.check_output(arguments.picture, ".png", ".svg", argument="--picture")


def label(arguments: argparse.Namespace, path: Path, labels: Sequence[str] | None) -> None:
    """Label the video at `path` over time, and write what the arguments ask for.

    `labels` are classes in place of the run's. Raises UserError where it is no video.
    """
    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax import drawing
    from inti_jax.distributed import sharding
    from inti_jax.evaluation import inference
    from inti_jax.evaluation.classifier import VideoClassifier
    from inti_jax.streaming import feed, picture, segment_files, sources, timeline
    from inti_jax.streaming.engine import Stream

    start, end = arguments.start or 0.0, math.inf if arguments.end is None else arguments.end
    announced = sources.duration(path)
    found = inference.load_model(
        arguments.checkpoint,
        sharding.one_device_mesh(),
        pretrained=arguments.pretrained,
        step=arguments.step,
        weights=arguments.weights,
        labels=labels,
    )
    settings = found.record.config
    multi_label, threshold = settings.train.multi_label, arguments.threshold
    if threshold is None:
        threshold = 0.5 if multi_label else 0.0
    stream = Stream(VideoClassifier(*found.for_inference(), found.record), arguments.every, stride=1)
    reader = feed.Feed(
        sources.Source(str(path), lambda: sources.video(path, start, end), may_stall=False),
        frame_arguments.chooser(arguments, settings.data, stream.frames),
        2 * stream.frames,
    )
    curve = timeline.Curve()
    points = timeline.points(feed.answers(stream, reader, fill=True))
    if announced is not None:
        points = _showing_progress(points, start, min(announced, end))
    points = curve.noting(timeline.smoothed(points, arguments.smooth or 0.0))
    merged = timeline.Labels(stream.labels, threshold, multi_label=multi_label)
    count = 0
    with contextlib.ExitStack() as stack:
        write: segment_files.Write = segment_files.as_text
        if arguments.out is not None:
            write = stack.enter_context(segment_files.SegmentFile(arguments.out))
        elif arguments.json:
            write = stack.enter_context(segment_files.as_json(sys.stdout))
        for segment in merged.segments(points, start, lambda: min(reader.end, end)):
            write(segment)
            count += 1
        if not len(curve.seconds):
            raise UserError(f"{path} has no frame from {start:g} s on")
    if arguments.out is not None:
        log.info("%s: %d segments of %s", arguments.out, count, path)
    if arguments.picture is not None:
        drawn = drawing.render(
            lambda pyplot: picture.draw(curve, stream.labels, start, min(reader.end, end), pyplot),
            str(arguments.picture),
            "svg" if arguments.picture.suffix.lower() == ".svg" else "png",
        )
        if drawn is None:
            raise UserError(f"{arguments.picture} is missing, since it could not be drawn")
        with naming(arguments.picture):
            arguments.picture.write_bytes(drawn)


def _showing_progress(points: "Iterable[Point]", start: float, end: float) -> "Iterator[Point]":
    """Show the seconds that are labelled, out of those from `start` to `end`."""
    from inti_jax.runs.writers.progress import Progress

    with contextlib.closing(Progress("timeline", max(int(end - start), 1))) as progress:
        at = 0
        for point in points:
            for _ in range(int(min(point.seconds, end) - start) - at):
                progress.advance()
                at += 1
            yield point
