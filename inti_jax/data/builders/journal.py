"""What a build has done so far, on disk, so that another process can go on after it was killed.

`<version>.partial/` stands beside the place of the dataset to be and has

    plan.json       what the build is of; a build of anything else does not go on from here
    journal/        for each shard that was written, what is in it and the hash of its file
    dataset/        the files of the dataset, which becomes the dataset when all are there
    lock            held by the process at work

A shard has its final name only when it is complete, and counts only if it still hashes to what its journal
says. Any number of processes, on any machines that see the directory, may write shards at the same time, also
the same one: that gives the same bytes, and each renames its own file.
"""

import contextlib
import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inti_jax.data import parallel
from inti_jax.data.manifest import Rejected, Video, file_sha256
from inti_jax.errors import UserError
from inti_jax.host import locks

_WRITING = ".writing"


@dataclasses.dataclass(frozen=True)
class Part:
    """A shard that is complete: its file's hash, its videos in order, and the files left out on the way."""

    sha256: str
    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]


@dataclasses.dataclass(frozen=True)
class Journal:
    """The directory of an unfinished build. Shards go by the name of their file."""

    directory: Path

    @classmethod
    def beside(cls, dataset: Path) -> "Journal":
        """The journal of a build that is to become the directory `dataset`."""
        return cls(dataset.with_name(dataset.name + ".partial"))

    @property
    def dataset(self) -> Path:
        return self.directory / "dataset"

    @contextlib.contextmanager
    def opened(self, plan: dict[str, Any], workers: int) -> Iterator[None]:
        """Meanwhile no other process builds here. Keeps the shards that are as they were written, no others.

        Raises UserError if another process is at work, or if there are shards of another plan.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locks.held(self.directory / "lock"))
            except locks.HeldError as error:
                raise UserError(
                    f"another process is preparing {self.directory}: wait for it ({error})"
                ) from None
            path = self.directory / "plan.json"
            if _read(path) != plan:
                if any((self.dataset / part.stem).exists() for part in self._parts()):
                    raise UserError(
                        f"{self.directory} was begun with other files, labels, splits, --short_side, --fps "
                        "or --strict: delete it, or call the command as it was called then, to go on"
                    )
                shutil.rmtree(self.dataset, ignore_errors=True)
                _write(path, plan)
            for place in (self.dataset, self.directory / "journal"):
                place.mkdir(exist_ok=True)
            self._drop_incomplete(workers)
            yield

    def note(self, shard: str, videos: Iterable[Video], rejected: Iterable[Rejected]) -> None:
        """Says what `shard`, which is being written, is going to hold."""
        contents = {
            "sha256": "",  # of a file that is not complete
            "videos": [dataclasses.asdict(video) for video in videos],
            "rejected": [dataclasses.asdict(entry) for entry in rejected],
        }
        _write(self._path(shard), contents)

    @contextlib.contextmanager
    def writing(self, shard: str) -> Iterator[Path]:
        """A file to write `shard` to; afterwards it is complete. What it holds has to be noted meanwhile."""
        path = self.dataset / f"{shard}.{uuid.uuid4().hex}{_WRITING}"
        try:
            yield path
            # Complete only with both: killed in between, the file is written anew.
            _write(self._path(shard), _read(self._path(shard)) | {"sha256": file_sha256(path)})
            path.rename(self.dataset / shard)
        finally:
            path.unlink(missing_ok=True)

    def part(self, shard: str) -> Part | None:
        """What is in `shard`, if it is complete."""
        raw = _read(self._path(shard))
        if not raw.get("sha256") or not (self.dataset / shard).exists():
            return None
        videos = tuple(Video(**video) for video in raw["videos"])
        return Part(raw["sha256"], videos, tuple(Rejected(**rejected) for rejected in raw["rejected"]))

    def finish(self, dataset: Path) -> None:
        """Makes the files the dataset, in one step."""
        self._drop_writing()
        self.dataset.rename(dataset)
        self.discard()

    def discard(self) -> None:
        """Deletes it all."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _drop_incomplete(self, workers: int) -> None:
        self._drop_writing()
        parts = list(self._parts())
        for path, intact in zip(parts, parallel.in_order(self._is_intact, parts, workers), strict=True):
            if not intact:
                path.unlink()
                (self.dataset / path.stem).unlink(missing_ok=True)

    def _is_intact(self, part: Path) -> bool:
        shard = self.dataset / part.stem
        return shard.exists() and file_sha256(shard) == _read(part).get("sha256")

    def _drop_writing(self) -> None:
        for path in [*self.dataset.glob(f"*{_WRITING}"), *self._parts(_WRITING)]:
            path.unlink()

    def _parts(self, suffix: str = ".json") -> Iterator[Path]:
        return (self.directory / "journal").glob(f"*{suffix}")

    def _path(self, shard: str) -> Path:
        return self.directory / "journal" / f"{shard}.json"


def _read(path: Path) -> dict[str, Any]:
    """What `_write` wrote; nothing if it is not there, or was lost with the machine's power."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, contents: dict[str, Any]) -> None:
    """Writes JSON; readers see all of it or nothing, also where others write the same."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_WRITING}")
    partial.write_text(json.dumps(contents))
    partial.replace(path)
