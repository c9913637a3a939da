"""Write segments of a video as CSV, JSON or WebVTT, each as soon as it is known."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inti_jax.cli import terminal
from inti_jax.errors import naming
from inti_jax.streaming.timeline import Segment

Write = Callable[[Segment], None]


class SegmentFile:
    """A file of segments in the format of its suffix, .csv, .json or .vtt: a context that writes when called.

    The first segment, or the end, makes the file or empties it. Where an error cuts it short, the file is
    well formed up to there, and where that comes first, nothing is written.
    """

    def __init__(self, path: Path):
        """Write to `path` later."""
        self._path = path
        self._make = {".csv": _csv, ".json": as_json, ".vtt": _vtt}[path.suffix.lower()]
        self._stack = contextlib.ExitStack()
        self._write: Write | None = None

    def __call__(self, segment: Segment) -> None:
        """Write a segment at once."""
        with naming(self._path):
            if self._write is None:
                self._start()
            assert self._write is not None
            self._write(segment)
            self._file.flush()

    def _start(self) -> None:
        opening = self._path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._file = self._stack.enter_context(opening)
        self._write = self._stack.enter_context(self._make(self._file))

    def __enter__(self) -> "SegmentFile":
        return self

    def __exit__(self, *error: Any) -> None:
        with naming(self._path), self._stack:
            if self._write is None and error[0] is None:
                self._start()
            self._stack.__exit__(*error)


@contextlib.contextmanager
def as_json(file: terminal.Stream) -> Iterator[Write]:
    """Write a list of objects; where an error comes before the first, nothing is written."""
    started = False

    def write(segment: Segment) -> None:
        nonlocal started
        entry = segment._asdict() | {"start": round(segment.start, 3), "end": round(segment.end, 3)}
        file.write(f"{',' if started else '['}\n  {json.dumps(entry)}")
        started = True

    try:
        yield write
    except BaseException:
        file.write("\n]\n" if started else "")
        raise
    file.write("\n]\n" if started else "[]\n")


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
