"""Read prepared datasets in a bucket: their metadata as files on this machine, their records one by one.

The files that describe a dataset lie in a directory that stands for its URL (see `host.stores`). Once a copy
of a shard lies in the directory (see `copies`), its records are read from there. Until then ArrayRecord's own
reader asks the bucket for them. That is slower: for each record it asks for the rest of the shard, and breaks
the connection off where it has enough.
"""

import bisect
import contextlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from inti_jax.data import manifest
from inti_jax.errors import UserError
from inti_jax.host import paths, stores

Result = TypeVar("Result")

VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")

# In the name of a shard, as TFDS makes it.
SHARD = ".array_record-"

# Directories that stand for datasets, by URL and manifest.
_described: dict[tuple[str, stores.Entry], Path] = {}

# Seconds that a read may take. Google's client tries again for 15 minutes, with up to 5 between two tries.
_LONGEST = 120.0
# The same where the read before had no answer: a batch should not wait that long for each of its records.
_AFTERWARDS = 1.0


def newest(versions: Iterable[str]) -> str | None:
    """Return the highest of the names that are versions, or None."""
    found = [
        (tuple(map(int, match.groups())), match[0]) for match in map(VERSION.fullmatch, versions) if match
    ]
    return max(found)[1] if found else None


def versions(url: str) -> dict[str, dict[str, stores.Entry]]:
    """List the files of each finished version of the dataset `url`, by the version's name.

    Raises UserError where the store cannot be read.
    """
    found: dict[str, dict[str, stores.Entry]] = {}
    for path, entry in stores.entries(url).items():
        version, _, name = path.partition("/")
        found.setdefault(version, {})[name] = entry
    return {version: files for version, files in found.items() if manifest.FILE_NAME in files}


def names(url: str) -> list[str]:
    """Name the finished datasets in the directory `url`."""
    parts = (path.split("/") for path in stores.entries(url))
    return sorted({part[0] for part in parts if len(part) == 3 and part[2] == manifest.FILE_NAME})


def described(url: str, files: Mapping[str, stores.Entry]) -> Path:
    """Return a directory that stands for `url`, a dataset of these `files`, with those that describe it.

    It goes with this process. It is the same as before if the manifest is.
    """
    key = url, files[manifest.FILE_NAME]
    if key not in _described:
        _described[key] = describe_in(stores.stand_in(url), files)
    return _described[key]


def describe_in(directory: Path, files: Iterable[str]) -> Path:
    """Fetch what describes a dataset, of its `files`, into the directory that stands for it, and return that.

    The manifest comes last, so a directory with one has all.
    """
    url = stores.origin(directory)
    described = [name for name in files if SHARD not in name and "/" not in name]
    for name in sorted(described, key=lambda name: name == manifest.FILE_NAME):
        partial = directory / f"{name}.{os.getpid()}.partial"
        stores.download(f"{url}/{name}", partial)
        partial.replace(directory / name)
    return directory


@contextlib.contextmanager
def fetched(shard: Path) -> Iterator[Path]:
    """Give the path of a shard; where it stands for one in a bucket, fetch that, and remove it in the end.

    There is no file where there is none in the bucket. Raises UserError where the bucket cannot be read.
    """
    url = stores.origin(shard)
    if url is None or shard.exists():
        yield shard
        return
    try:
        if stores.is_file(url):
            stores.download(url, shard)
        yield shard
    finally:
        shard.unlink(missing_ok=True)


class Records:
    """The records of one split, by index, read from where they are: in the bucket, or in a copy of the shard.

    Several threads may read them. A record that is damaged raises RuntimeError, a bucket that cannot be read
    UserError.
    """

    def __init__(
        self, directory: Path, shards: Sequence[tuple[str, int]], deserialize: Callable[[bytes], Any]
    ):
        """Take the `shards` in order as names and numbers of records, and the parser of a record's bytes."""
        self._directory, self._url = directory, stores.origin(directory)
        self._deserialize = deserialize
        self._names = [name for name, _ in shards]
        self._ends = list(itertools.accumulate(count for _, count in shards))
        self._there: list[Any] = [None] * len(shards)  # readers of the bucket
        self._here: list[Any] = [None] * len(shards)  # readers of the copies
        self._stack = contextlib.ExitStack()
        self._plain: Path = self._stack.enter_context(paths.plain(directory))
        self._opening = threading.Lock()
        self._silent = False  # whether the last read had no answer

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        reader = self._copy(shard)
        if reader is None:
            return self._deserialize(self._fetch(shard, place))
        return self._deserialize(reader.read([place])[0])

    def _count(self, shard: int) -> int:
        return self._ends[shard] - (self._ends[shard - 1] if shard else 0)

    def _copy(self, shard: int) -> Any:
        """Return the reader of a shard's copy, None where there is no whole one."""
        if self._here[shard] is None and (self._directory / self._names[shard]).exists():
            with self._opening:
                if self._here[shard] is None:
                    with contextlib.suppress(RuntimeError, OSError):  # it may just have been removed
                        reader = _reader(str(self._plain / self._names[shard]))
                        if reader.num_records() == self._count(shard):
                            os.utime(self._directory / self._names[shard])  # the time of its last use
                            self._here[shard], self._there[shard] = reader, None
        return self._here[shard]

    def _fetch(self, shard: int, place: int) -> bytes:
        """Read one record of a shard in the bucket."""
        url = f"{self._url}/{self._names[shard]}"
        seconds = min(_AFTERWARDS, _LONGEST) if self._silent else _LONGEST
        try:
            reader = self._there[shard]
            if reader is None:
                reader = self._there[shard] = _within(seconds, _reader, url)
                found = reader.num_records()
                if found != self._count(shard):
                    self._there[shard] = None
                    if not stores.is_file(url):
                        raise UserError(f"{url} does not exist")
                    raise RuntimeError(f"{url} has {found} records, not {self._count(shard)}")
            record = _within(seconds, reader.read, [place])[0]
            self._silent = False
            return record
        except TimeoutError:
            self._silent = True
            raise stores.told(url, TimeoutError(f"no answer in {_LONGEST:g} s")) from None
        except RuntimeError as error:
            # Anything else is about the bytes that came.
            if "reading gs://" not in str(error):
                raise
            raise _refused(url, error) from None


def _refused(url: str, error: RuntimeError) -> UserError:
    """Make the error for the user of what Google's client said."""
    said = str(error)
    if "404" in said:
        return stores.told(url, FileNotFoundError())
    if "403" in said or "401" in said:
        return stores.told(url, PermissionError())
    return stores.told(url, RuntimeError(said.partition("; reading ")[0]))


def _reader(path: str) -> Any:
    from array_record.python import array_record_module  # late: slow to import

    # As TFDS opens shards: no bytes beside those of the record are read.
    return array_record_module.ArrayRecordReader(
        path, "readahead_buffer_size:0", file_reader_buffer_size=32768
    )


def _within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that may wait for longer than anyone would. Raises TimeoutError after `seconds`.

    The call then goes on, in a thread that does not keep the process.
    """
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name="record").start()
    return future.result(timeout=seconds)
