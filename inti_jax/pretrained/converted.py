"""Convert checkpoints to the project's file, also on the fly where a converted file is expected.

A checkpoint that is given in place of a converted file is converted once, into a file beside it. That file
records the sizes and modification times of its sources, and is made anew when these change. One on the Hub is
converted once a commit, into the assets of the Hub's cache.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from inti_jax.distributed import coordination, liveness
from inti_jax.errors import UserError
from inti_jax.hub import names
from inti_jax.hub.names import HubName, Place
from inti_jax.hub.repository import cache_directory, pin
from inti_jax.models.tokenizer import VOCABULARY_FILES
from inti_jax.pretrained import architecture, clip_file, file_kinds, from_hub, matching, sources
from inti_jax.pretrained.architecture import Activation
from inti_jax.pretrained.clip_file import ClipFile, Description
from inti_jax.pretrained.lazy_array import LazyArray
from inti_jax.pretrained.peers import others
from inti_jax.pretrained.sources import is_run

log = logging.getLogger("inti_jax")

# The conversion's version. Raise it when the result changes: files of earlier versions are then made anew.
_VERSION = 1
# Seconds to wait for a file that another host wrote: network file systems show new files late.
_VISIBLE = 20
# Milliseconds. `liveness` ends a process that waits in vain long before.
_LONGEST = 24 * 3600 * 1000

# Numbers the keys of the coordination service, each of which can be set once. The numbers agree between
# processes, since all open the same files in the same order.
_rounds = itertools.count()


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion: the matched keys, and the description, arrays and hash in the file."""

    matched: matching.Matched
    description: Description
    arrays: dict[str, LazyArray]
    hash: str


def convert(
    path: Path,
    out: Path,
    *,
    activation: Activation | None = None,
    head_size: int | None = None,
    vocabulary: Path | None = None,
) -> Conversion:
    """Convert the checkpoint at `path` to the file `out`, one array in memory at a time.

    The keyword arguments are those of `architecture.describe`. Raises UserError where `path` cannot be
    converted; then nothing is written.
    """
    source = sources.read(path)
    others.refuse(source)
    return _write(source, out, activation, head_size, vocabulary)


def open_converted(place: str | Place) -> ClipFile:
    """Open a CLIP: a file that `convert` wrote, or a checkpoint of another kind, which is converted first.

    It is here or on the Hub. The converted file is `NAME.inti_jax.safetensors` beside the checkpoint, for one
    on the Hub in the cache, and is reused the next time. Of a run's processes the first converts and the
    others wait. Of several runs on a machine one converts. Raises UserError, with the command that converts,
    where the conversion needs arguments or the directory cannot be written.
    """
    place = place if isinstance(place, HubName) else names.place(place)
    if isinstance(place, HubName):
        place = pin(place)
    else:
        check_there(place)
        if not (place.is_file() or place.is_dir()):
            raise UserError(f"{place} is neither a file nor a directory")
    ours = place if isinstance(place, Path) and file_kinds.is_own(place) else None
    client = coordination.client()
    if client is None:
        return ClipFile(ours) if ours else _converted(place)

    # Each process does this, whether its own file is converted or not: hosts may have different files.
    liveness.note("the converted weights", slow=True)
    key = f"inti_jax/converted/{next(_rounds)}"
    if jax.process_index() == 0:
        opened = ClipFile(ours) if ours else _converted(place)
        client.key_value_set(key, "" if ours else _made_from(place))
        return opened
    if ours:
        return ClipFile(ours)
    made_from = _made_from(place)
    if client.blocking_key_value_get(key, _LONGEST) == made_from:  # the same file, on shared storage
        deadline = time.monotonic() + _VISIBLE
        while _valid(_cache(place), made_from) is None and time.monotonic() < deadline:
            time.sleep(0.2)
    return _converted(place)


def check_there(path: Path) -> None:
    """Raise UserError where no file and no directory is at `path`."""
    if not path.exists():
        raise UserError(
            f"{path}: there is no such file; `python -m inti_jax.convert SRC --out F.safetensors` writes one"
        )


def _converted(place: Place) -> ClipFile:
    made_from = _made_from(place)
    with _turn(place):
        found = _valid(_cache(place), made_from)
        return found or _make(place, made_from)


def _make(place: Place, made_from: str) -> ClipFile:
    path = from_hub.fetch(place) if isinstance(place, HubName) else place
    if file_kinds.is_own(path):  # on the Hub, where only the file itself tells
        return ClipFile(path)
    started, cache = time.monotonic(), _cache(place)
    command = f"python -m inti_jax.convert {shlex.quote(str(place))} --out F.safetensors"
    with _saying_what_is_meant():
        source = sources.read(path)
    others.refuse(source)
    with _saying_what_is_meant():
        matched = matching.match(path, source.arrays)
    if not architecture.says_activation(source, matched):
        raise UserError(
            f"{place} is not converted yet and does not state its activation: run `{command} --activation "
            "quick_gelu` for OpenAI's weights, or with `gelu` for most others"
        )
    try:
        _write(source, cache, made_from=made_from)
    except UserError as error:
        raise UserError(f"{place} is not converted yet: {error}; convert it with `{command}`") from None
    log.warning(
        "converted %s to %s in %.1f s; later starts read the converted file",
        place,
        cache,
        time.monotonic() - started,
    )
    return ClipFile(cache)


def _write(
    source: sources.ForeignCheckpoint,
    out: Path,
    activation: Activation | None = None,
    head_size: int | None = None,
    vocabulary: Path | None = None,
    *,
    made_from: str | None = None,
) -> Conversion:
    matched = matching.match(source.path, source.arrays)
    description = architecture.describe(
        source, matched, activation=activation, head_size=head_size, vocabulary=vocabulary
    )
    arrays = matching.fill(matched, clip_file.parameter_shapes(description.architecture))
    digest = clip_file.write(out, arrays, description, made_from=made_from)
    return Conversion(matched, description, arrays, digest)


def _cache(place: Place) -> Path:
    """Return the path of the file that `place`, on the Hub at a commit, is converted into."""
    if isinstance(place, HubName):
        file = (place.file or "model").replace("/", "--")
        return cache_directory(place) / f"{file}.inti_jax.safetensors"
    path = place.absolute()
    return path.with_name(f"{path.name}.inti_jax.safetensors")


def _made_from(place: Place) -> str:
    """Describe what a conversion reads, as JSON: the commit, or the files with sizes and times.

    Raises UserError where `place` is a run or no checkpoint.
    """
    facts = {"hub": str(place)} if isinstance(place, HubName) else {"files": _files(place)}
    return json.dumps({"version": _VERSION, **facts})


def _files(path: Path) -> dict[str, list[int]]:
    """List the files that a conversion reads, with sizes and modification times."""
    if path.is_dir() and is_run(path):
        raise UserError(
            f"{path} is a run, not a converted file: `python -m inti_jax.convert {shlex.quote(str(path))} "
            "--out F.safetensors` converts its image tower"
        )
    with _saying_what_is_meant():
        weights = sources.weight_files(path)
    directory = path if path.is_dir() else path.parent
    beside = ("config.json", "open_clip_config.json", "preprocessor_config.json", "merges.txt")
    files = [*weights, *(directory / name for name in (*beside, *VOCABULARY_FILES))]
    stats = {file.name: file.stat() for file in files if file.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())}


@contextlib.contextmanager
def _saying_what_is_meant() -> Iterator[None]:
    """Add to a UserError raised inside that a converted file is expected."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; give a file that `python -m inti_jax.convert` wrote") from None


def _valid(cache: Path, made_from: str) -> ClipFile | None:
    """Open the converted file if it is whole and made from the present sources; else give None."""
    if not cache.is_file():
        return None
    try:
        found = ClipFile(cache)
    except UserError:
        return None
    return found if found.made_from == made_from else None


@contextlib.contextmanager
def _turn(place: Place) -> Iterator[None]:
    """Let one process at a time convert `place`.

    Where the file system has no locks, several may convert at once, with the same result.
    """
    handle = os.open(_cache(place).parent if isinstance(place, HubName) else place, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
