"""Keep the progress of a build on disk, so that another process can resume a build that was killed.

`<version>.partial/`, beside the directory of the future dataset, contains

    plan.json       hash of the source and options, number of shards; only a build with the same plan resumes
    journal/        for each shard, its contents and, once it is complete, the hash of its file
    dataset/        the files of the dataset; renamed to the dataset when all are complete
    lock            held by the process at work

A shard gets its final name when it is complete. It counts only if its file still has the hash in its journal.
Any number of processes, on any machines that see the directory, may write shards at the same time, even the
same shard: they write the same bytes, and each renames its own file.
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
    """Record of a complete shard: its file's hash, its videos in order, and the rejected files."""

    sha256: str
    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]


@dataclasses.dataclass(frozen=True)
class Journal:
    """Directory of an unfinished build. Shards are identified by their file names."""

    directory: Path

    @classmethod
    def beside(cls, dataset: Path) -> "Journal":
        """Return the journal of the build whose dataset is to be the directory `dataset`."""
        return cls(dataset.with_name(dataset.name + ".partial"))

    @property
    def dataset(self) -> Path:
        """Directory of the dataset's files until the build is finished."""
        return self.directory / "dataset"

    @contextlib.contextmanager
    def opened(self, plan: dict[str, Any], workers: int) -> Iterator[None]:
        """Lock the journal for this process, and keep only the shards that are intact.

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
                        f"{self.directory} holds a build with other files, labels, splits, --short_side, "
                        "--fps or --strict: delete it, or run the earlier command to resume it"
                    )
                shutil.rmtree(self.dataset, ignore_errors=True)
                _write(path, plan)
            for place in (self.dataset, self.directory / "journal"):
                place.mkdir(exist_ok=True)
            self._drop_incomplete(workers)
            yield

    def note(self, shard: str, videos: Iterable[Video], rejected: Iterable[Rejected]) -> None:
        """Record the contents of `shard` while it is being written."""
        contents = {
            "sha256": "",  # empty until the file is complete
            "videos": [dataclasses.asdict(video) for video in videos],
            "rejected": [dataclasses.asdict(entry) for entry in rejected],
        }
        _write(self._path(shard), contents)

    @contextlib.contextmanager
    def writing(self, shard: str) -> Iterator[Path]:
        """Yield the path of a file to write `shard` to, and make the shard complete on exit.

        Inside, `note` has to be called for the shard.
        """
        path = self.dataset / f"{shard}.{uuid.uuid4().hex}{_WRITING}"
        try:
            yield path
            # A shard is complete with its hash and its final name. If the process is killed between the two
            # steps, the shard is written anew.
            _write(self._path(shard), _read(self._path(shard)) | {"sha256": file_sha256(path)})
            path.rename(self.dataset / shard)
        finally:
            path.unlink(missing_ok=True)

    def part(self, shard: str) -> Part | None:
        """Return the contents of `shard`, or None if it is not complete."""
        raw = _read(self._path(shard))
        if not raw.get("sha256") or not (self.dataset / shard).exists():
            return None
        videos = tuple(Video(**video) for video in raw["videos"])
        return Part(raw["sha256"], videos, tuple(Rejected(**rejected) for rejected in raw["rejected"]))

    def finish(self, dataset: Path) -> None:
        """Turn the files into the dataset with one rename, and delete the journal."""
        self._drop_writing()
        self.dataset.rename(dataset)
        self.discard()

    def discard(self) -> None:
        """Delete the journal with all its files."""
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
    """Read a JSON object that `_write` wrote; empty if it is missing or was damaged by a power failure."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, contents: dict[str, Any]) -> None:
    """Write JSON atomically: readers see all of it or nothing, even if several processes write it."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_WRITING}")
    partial.write_text(json.dumps(contents))
    partial.replace(path)
