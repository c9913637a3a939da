"""Copy the shards of a dataset in a bucket to a local disk, in the background, within a bound of bytes.

A cache has a directory for each dataset, `inti-jax-store-<hash of URL and manifest>/gs/bucket/...`, which
stands for its URL. A copy gets its name once it has the SHA-256 of the manifest, so readers see whole shards
alone. Any number of processes may share a cache: locks beside the directories say which dataset is in use,
which shard is being copied, and who makes room.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inti_jax import config
from inti_jax.data import manifest, remote
from inti_jax.errors import UserError
from inti_jax.host import locks, stores
from inti_jax.host.paths import local_path

log = logging.getLogger("inti_jax")

_ROOT = "inti-jax-store-"
_COMING = re.compile(r"\.\d+-(\d+)\.partial$")
# Seconds until the next attempt where the store, or another process, does not let a shard be copied now.
_AGAIN = 20.0
# The locks on the datasets that this process uses, by their files.
_used: dict[Path, contextlib.ExitStack] = {}
# Bytes of the disk that stay free.
_FREE = 2 * 10**9
# Attempts to copy a shard whose bytes are not those of the manifest.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Cache:
    """A directory for copies, and the most bytes that all files in it may have."""

    directory: Path
    most: int

    @classmethod
    def of(cls, data: config.Data) -> "Cache | None":
        """Return the cache that a configuration describes, or None where it wants none."""
        if not data.cache_gb:
            return None
        directory = local_path(data.cache_dir) if data.cache_dir else stores.cache() / "datasets"
        return cls(directory, int(data.cache_gb * 1e9))

    def directory_of(self, url: str, contents: bytes) -> Path:
        """Make the directory for the dataset at `url` whose manifest has these `contents`."""
        scheme, rest = url.split("://", 1)
        key = hashlib.sha256(f"{url} ".encode() + contents).hexdigest()[:16]
        directory = self.directory / f"{_ROOT}{key}" / scheme / rest
        self.use(directory)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def use(self, directory: Path) -> None:
        """Keep others from removing copies of the dataset in `directory` while this process lives."""
        lock = self.locks / _key(directory)
        if lock not in _used:
            _used[lock] = contextlib.ExitStack()
            _used[lock].enter_context(locks.shared(lock))

    @property
    def locks(self) -> Path:
        """The directory of the locks."""
        return self.directory / "locks"

    def whole(self, url: str, split: str) -> Path | None:
        """Find the newest version of the dataset `url` that has copies of all shards of `split`, or None."""
        scheme, rest = url.split("://", 1)
        found: dict[str, Path] = {}
        for parent in sorted(self.directory.glob(f"{_ROOT}*"), key=lambda path: path.stat().st_mtime):
            for path in parent.joinpath(scheme, rest).glob(f"*/{manifest.FILE_NAME}"):
                with contextlib.suppress(UserError):
                    contents = manifest.read(path.parent).splits.get(split)
                    if contents and contents.shards and not _missing(path.parent, contents.shards):
                        found[path.parent.name] = path.parent
        version = remote.newest(found)
        if version is None:
            return None
        self.use(found[version])
        return found[version]


class Copying:
    """The copying of a split's shards, by a thread of this process, for as long as the dataset is used."""

    def __init__(self, cache: Cache, directory: Path, split: str, shards: Sequence[manifest.Shard]):
        self._cache, self._directory, self._split, self._shards = cache, directory, split, tuple(shards)
        self._ended = threading.Event()
        self._failed: set[str] = set()
        self._said: set[str] = set()
        self._locks = cache.locks
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)

    def start(self, user: Any) -> "Copying":
        """Start the thread, which ends with `user`."""
        weakref.finalize(user, self.close)
        if not self._shards:
            self._say(f"{self._directory} was prepared by an earlier version, without hashes: not copying it")
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop after the shard that is being copied."""
        self._ended.set()

    def join(self) -> None:
        """Wait until all is copied that can be."""
        self._thread.join()

    @property
    def whole(self) -> bool:
        """True once all shards are here."""
        return bool(self._shards) and not _missing(self._directory, self._shards)

    def _run(self) -> None:
        url = stores.origin(self._directory)
        sizes: dict[str, int] = {}
        while (missing := self._wanted()) and not self._ended.is_set():
            try:
                sizes = sizes or {name: entry.size for name, entry in stores.entries(f"{url}").items()}
                for shard in missing:
                    if self._ended.is_set():
                        return
                    if not self._copy(shard, sizes.get(shard.file, 0)):
                        return
            except UserError as error:
                self._say(f"{error}; trying to copy it again every {_AGAIN:.0f} s")
            except OSError as error:  # a full disk, or one that fails
                self._say(f"{self._cache.directory}: {error.strerror or error}: copying no more shards")
                return
            if self._wanted():
                self._ended.wait(_AGAIN)

    def _wanted(self) -> list[manifest.Shard]:
        missing = _missing(self._directory, self._shards)
        return [shard for shard in missing if shard.file not in self._failed]

    def _copy(self, shard: manifest.Shard, size: int) -> bool:
        """Copy a shard, unless another process does; return False where there is no room."""
        path = self._directory / shard.file
        with contextlib.suppress(locks.HeldError), locks.held(self._locks / f"{_key(path)}-{shard.file}"):
            if path.exists():
                return True
            for left in path.parent.glob(f"{shard.file}.*.partial"):  # by a process that was killed
                left.unlink()
            # The name has the size that the file will have, for others who count what is taken.
            partial = path.with_name(f"{shard.file}.{os.getpid()}-{size}.partial")
            if not self._make_room(partial, size):
                whole = len(self._shards) - len(_missing(self._directory, self._shards))
                self._say(
                    f"{self._cache.directory} has room for {whole} of the {len(self._shards)} shards of "
                    f"`{self._split}`, with data.cache_gb={self._cache.most / 1e9:g}: the others are read "
                    "from the bucket, which is slower"
                )
                return False
            try:
                for _ in range(_ATTEMPTS):
                    stores.download(f"{stores.origin(self._directory)}/{shard.file}", partial)
                    with partial.open("rb") as file:
                        os.fsync(file.fileno())
                        if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
                            partial.rename(path)
                            return True
                self._failed.add(shard.file)
                self._say(f"{path} has another hash than the manifest: not copying it")
            finally:
                partial.unlink(missing_ok=True)
        return True

    def _make_room(self, partial: Path, size: int) -> bool:
        """Reserve `size` bytes by the file `partial`; remove copies that nobody uses, oldest use first."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_waiting(self._locks / "room"))
            taken = _sizes(self._cache.directory)
            free = shutil.disk_usage(self._cache.directory).free
            surplus = size - min(self._cache.most - sum(taken.values()), free - _FREE)
            if surplus > 0:
                unused = [
                    root
                    for root in self._cache.directory.glob(f"{_ROOT}*")
                    if _try(stack, locks.held(self._locks / _key(root)))
                ]
                shards = sorted(
                    (path for root in unused for path in _shards_in(root)),
                    key=lambda path: path.stat().st_mtime,
                )
                if surplus > sum(taken[path] for path in shards):
                    return False  # and nothing is removed in vain
                for path in shards:
                    if surplus > 0:
                        path.unlink()
                        surplus -= taken[path]
                for root in unused:
                    if not _shards_in(root):
                        shutil.rmtree(root)
            partial.touch()
            return True

    def _say(self, message: str) -> None:
        """Log a warning once."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s", stores.shown(message))


def _missing(directory: Path, shards: Sequence[manifest.Shard]) -> list[manifest.Shard]:
    return [shard for shard in shards if not (directory / shard.file).exists()]


def _key(directory: Path) -> str:
    """Name the dataset that a directory of a cache belongs to."""
    return next(part.removeprefix(_ROOT) for part in directory.parts if part.startswith(_ROOT))


def _sizes(cache: Path) -> dict[Path, int]:
    """List the files of a cache with the bytes that they take, or will take once they are whole."""
    found = {}
    for path in cache.glob(f"{_ROOT}*/**/*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            if path.is_file():
                coming = _COMING.search(path.name)
                found[path] = int(coming[1]) if coming else path.stat().st_size
    return found


def _shards_in(root: Path) -> list[Path]:
    return [path for path in root.rglob(f"*{remote.SHARD}*") if path.is_file()]


def _try(stack: contextlib.ExitStack, lock: contextlib.AbstractContextManager[None]) -> bool:
    """Enter `lock` until the end of `stack`; return False where another process holds it."""
    try:
        stack.enter_context(lock)
    except locks.HeldError:
        return False
    return True


@contextlib.contextmanager
def _waiting(path: Path) -> Iterator[None]:
    """Hold the file `path` once no other process does."""
    with contextlib.ExitStack() as stack:
        while not _try(stack, locks.held(path)):
            time.sleep(0.05)
        yield
