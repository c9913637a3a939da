"""Keep the progress of a build on disk, so that another process can resume a build that was killed.

`<version>.partial/`, beside the directory of the future dataset, contains

    plan.json       hash of the source and options, number of shards; only a build with the same plan resumes
    journal/        for each shard, its contents and, once it is complete, the hash of its file
    dataset/        the files of the dataset; renamed to the dataset when all are complete
    lock            held by the process at work

A shard gets its final name when it is complete. It counts only if its file still has the hash in its journal.
Any number of processes, on any machines that see the directory, may write shards at the same time, even the
same shard: they write the same bytes, and each renames its own file.

For a dataset in a bucket, the directory stands for its URL (see `host.stores`), and has one shard at a time.
A complete shard is written to its place in the dataset's own directory of the bucket, with its size and the
store's own checksum in its journal. Here a hole of its size remains, since TFDS adds up sizes. The manifest
comes last and makes it a dataset.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inti_jax.data import parallel
from inti_jax.data.manifest import FILE_NAME, Rejected, Video, file_sha256
from inti_jax.errors import UserError
from inti_jax.host import locks, stores

_PARTIAL, _WRITING = ".partial", ".writing"


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
        return cls(dataset.with_name(dataset.name + _PARTIAL))

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
            self._pull()
            if _read(path) != plan:
                if any(self._is_there(part) for part in self._parts()):
                    raise UserError(
                        f"{self.directory} holds a build with other files, labels, splits, --short_side, "
                        "--fps or --strict: delete it, or run the earlier command to resume it"
                    )
                shutil.rmtree(self.dataset, ignore_errors=True)
                _write(path, plan)
                if self._url:
                    stores.delete(self._final)
                    stores.upload(path, f"{self._url}/plan.json")
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
            contents = _read(self._path(shard)) | {"sha256": file_sha256(path)}
            if self._url:
                stores.upload(path, f"{self._final}/{shard}")
                contents["stored"] = dataclasses.astuple(stores.entries(self._final, deep=False)[shard])
                _write(self._path(shard), contents)
                stores.upload(self._path(shard), f"{self._url}/journal/{self._path(shard).name}")
                _make_hole(path, path.stat().st_size)
            else:
                _write(self._path(shard), contents)
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
        """Turn the files into the dataset with one rename, and delete the journal.

        In a bucket, the manifest does that, which is written after all other files.
        """
        self._drop_writing()
        if self._url:
            described = (path for path in self.dataset.iterdir() if not self._path(path.name).exists())
            for path in sorted(described, key=lambda path: path.name == FILE_NAME):
                stores.upload(path, f"{self._final}/{path.name}")
        self.dataset.rename(dataset)
        self.discard()

    def discard(self) -> None:
        """Delete the journal with all its files."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._url:
            for part in ("journal", "plan.json"):  # and not the lock, which is held
                stores.delete(f"{self._url}/{part}")

    def clear(self) -> None:
        """Delete what a build left that was killed just before its end."""
        if self._url is None:
            self.discard()
        elif stores.entries(self._url):
            with contextlib.suppress(locks.HeldError), locks.held(self.directory / "lock"):
                self.discard()

    @property
    def _url(self) -> str | None:
        """The URL of the journal in a bucket, or None."""
        return stores.origin(self.directory)

    @property
    def _final(self) -> str:
        """The URL of the dataset's own directory in a bucket."""
        return f"{self._url}".removesuffix(_PARTIAL)

    def _pull(self) -> None:
        """Fetch what a bucket has of the journal."""
        if self._url:
            self.directory.mkdir(parents=True, exist_ok=True)
            for name in stores.entries(self._url):
                if name.endswith(".json"):
                    (self.directory / name).parent.mkdir(exist_ok=True)
                    stores.download(f"{self._url}/{name}", self.directory / name)

    def _is_there(self, part: Path) -> bool:
        """Tell whether the shard of a journal's file is there, intact or not."""
        if self._url:
            return bool(_read(part).get("stored")) and stores.is_file(f"{self._final}/{part.stem}")
        return (self.dataset / part.stem).exists()

    def _drop_incomplete(self, workers: int) -> None:
        self._drop_writing()
        parts = list(self._parts())
        stored = stores.entries(self._final, deep=False) if self._url and parts else {}
        is_intact = functools.partial(self._is_intact, stored)
        for path, intact in zip(parts, parallel.in_order(is_intact, parts, workers), strict=True):
            if not intact:
                path.unlink()
                (self.dataset / path.stem).unlink(missing_ok=True)
            elif self._url:
                _make_hole(self.dataset / path.stem, stored[path.stem].size)

    def _is_intact(self, stored: Mapping[str, stores.Entry], part: Path) -> bool:
        if self._url:
            entry = stored.get(part.stem)
            return entry is not None and list(dataclasses.astuple(entry)) == _read(part).get("stored")
        shard = self.dataset / part.stem
        return shard.exists() and file_sha256(shard) == _read(part).get("sha256")

    def _drop_writing(self) -> None:
        for path in [*self.dataset.glob(f"*{_WRITING}"), *self._parts(_WRITING)]:
            path.unlink()

    def _parts(self, suffix: str = ".json") -> Iterator[Path]:
        return (self.directory / "journal").glob(f"*{suffix}")

    def _path(self, shard: str) -> Path:
        return self.directory / "journal" / f"{shard}.json"


def _make_hole(path: Path, size: int) -> None:
    """Make the file `path` of `size` bytes, which takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(size)


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
