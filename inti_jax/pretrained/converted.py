"""Convert checkpoints to the project's file, also on the fly where a converted file is expected.

A checkpoint that is given in place of a converted file is converted once, into a file beside it. That file
records the sizes and modification times of its sources, and is made anew when these change.
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
from inti_jax.host.paths import local_path
from inti_jax.models.tokenizer import VOCABULARY_FILES
from inti_jax.pretrained import architecture, clip_file, file_kinds, matching, sources
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


def open_converted(path: str | Path) -> ClipFile:
    """Open a CLIP: a file that `convert` wrote, or a checkpoint of another kind, which is converted first.

    The converted file is `NAME.inti_jax.safetensors` beside the checkpoint, and is reused the next time. Of a
    run's processes the first converts and the others wait. Of several runs on a machine one converts. Raises
    UserError, with the command that converts, where the conversion needs arguments or the directory cannot be
    written.
    """
    path = local_path(path)
    check_there(path)
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is neither a file nor a directory")
    ours = file_kinds.is_own(path)
    client = coordination.client()
    if client is None:
        return ClipFile(path) if ours else _converted(path)

    # Each process does this, whether its own file is converted or not: hosts may have different files.
    liveness.note("the converted weights", slow=True)
    key = f"inti_jax/converted/{next(_rounds)}"
    if jax.process_index() == 0:
        opened = ClipFile(path) if ours else _converted(path)
        client.key_value_set(key, "" if ours else _made_from(path))
        return opened
    if ours:
        return ClipFile(path)
    made_from = _made_from(path)
    if client.blocking_key_value_get(key, _LONGEST) == made_from:  # the same file, on shared storage
        deadline = time.monotonic() + _VISIBLE
        while _valid(_cache(path), made_from) is None and time.monotonic() < deadline:
            time.sleep(0.2)
    return _converted(path)


def check_there(path: Path) -> None:
    """Raise UserError where no file and no directory is at `path`."""
    if not path.exists():
        raise UserError(
            f"{path}: there is no such file; `python -m inti_jax.convert SRC --out F.safetensors` writes one"
        )


def _converted(path: Path) -> ClipFile:
    made_from = _made_from(path)
    with _turn(path):
        found = _valid(_cache(path), made_from)
        return found or _make(path, made_from)


def _make(path: Path, made_from: str) -> ClipFile:
    started, cache = time.monotonic(), _cache(path)
    command = f"python -m inti_jax.convert {shlex.quote(str(path))} --out F.safetensors"
    with _saying_what_is_meant():
        source = sources.read(path)
    others.refuse(source)
    with _saying_what_is_meant():
        matched = matching.match(path, source.arrays)
    if not architecture.says_activation(source, matched):
        raise UserError(
            f"{path} is not converted yet and does not state its activation: run `{command} --activation "
            "quick_gelu` for OpenAI's weights, or with `gelu` for most others"
        )
    try:
        _write(source, cache, made_from=made_from)
    except UserError as error:
        raise UserError(f"{path} is not converted yet: {error}; convert it with `{command}`") from None
    log.warning(
        "converted %s to %s in %.1f s; later starts read the converted file",
        path,
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


def _cache(path: Path) -> Path:
    path = path.absolute()
    return path.with_name(f"{path.name}.inti_jax.safetensors")


def _made_from(path: Path) -> str:
    """List the files that a conversion reads, with sizes and modification times, as JSON.

    Raises UserError where `path` is a run or no checkpoint.
    """
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
    facts = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())}
    return json.dumps({"version": _VERSION, "files": facts})


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
def _turn(path: Path) -> Iterator[None]:
    """Let one process at a time convert `path`.

    Where the file system has no locks, several may convert at once, with the same result.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
