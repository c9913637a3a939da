"""Write segments of a video as CSV, JSON or WebVTT, each as soon as it is known."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from inti_jax.cli import terminal
from inti_jax.errors import naming
from inti_jax.streaming.timeline import Segment

Write = Callable[[Segment], None]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Write]:
    """Open `path`, and give what writes a segment to it, in the format of its suffix, .csv, .json or .vtt.

    Where an error cuts it short, the file is well formed up to there.
    """
    make = {".csv": _csv, ".json": as_json, ".vtt": _vtt}[path.suffix.lower()]
    with (
        naming(path),
        path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        make(file) as write,
    ):

        def flushed(segment: Segment) -> None:
            write(segment)
            file.flush()

        yield flushed


@contextlib.contextmanager
def as_json(file: terminal.Stream) -> Iterator[Write]:
    """Write a list of objects."""
    start = "[\n"

    def write(segment: Segment) -> None:
        nonlocal start
        entry = segment._asdict() | {"start": round(segment.start, 3), "end": round(segment.end, 3)}
        file.write(f"{start}  {json.dumps(entry)}")
        start = ",\n"

    try:
        yield write
    finally:
        file.write("[]\n" if start == "[\n" else "\n]\n")


def as_text(segment: Segment) -> None:
    """Print a line."""
    print(f"{clock(segment.start)} - {clock(segment.end)}  {segment.probability:.3f}  {segment.label}")
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """Format a time as hours, minutes, seconds and milliseconds."""
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


@contextlib.contextmanager
def _csv(file: terminal.Stream) -> Iterator[Write]:
    table = csv.writer(file)
    table.writerow(Segment._fields)

    def write(segment: Segment) -> None:
        table.writerow(
            [f"{segment.start:.3f}", f"{segment.end:.3f}", segment.label, f"{segment.probability:.6g}"]
        )

    yield write


@contextlib.contextmanager
def _vtt(file: terminal.Stream) -> Iterator[Write]:
    """Write cues (https://www.w3.org/TR/webvtt1/), whose text has `&`, `<` and `>` as references."""
    file.write("WEBVTT\n")

    def write(segment: Segment) -> None:
        text = " ".join(segment.label.split())
        for char, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(char, reference)
        cue = f"{clock(segment.start)} --> {clock(segment.end)}"
        file.write(f"\n{cue}\n{text} {segment.probability:.2f}\n")

    yield write
