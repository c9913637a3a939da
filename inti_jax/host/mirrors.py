"""Keep directories and files on this machine equal to those of an object store.

A run's small files are read and written on this machine, in a directory that stands for the run's URL (see
`stores`). `push` writes what changed to the store. Checkpoints, which are large, never pass through here.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from inti_jax.host import stores
from inti_jax.host.repeating import repeated

# Seconds between two writes to the store. A kill loses at most the records of that time.
_INTERVAL = 60.0

# Sizes and times of change of the files as the store has them, by the path of the mirror and below it.
_Known = dict[str, tuple[int, int]]
_known: dict[Path, _Known] = {}
_turn = threading.Lock()
# Stand-ins of files that a command writes, which are pushed when it ends.
_outputs: list[Path] = []


def mirror(url: str) -> Path:
    """Make a directory that stands for the run at `url`, with the files directly in it; return its path.

    A directory that is not in the store is empty. Raises UserError where the store cannot be read, or cannot
    hold checkpoints.
    """
    url = stores.check_opened(url, "runs", "Orbax")
    directory = stores.stand_in(url)
    _known[directory] = {}
    _pull(directory, url, "")
    return directory


def bring(directory: Path) -> Path:
    """Fetch what the store has below `directory`, a directory of a mirror; return `directory`.

    Does nothing where it is here already, or stands for no URL.
    """
    url = stores.origin(directory)
    root = _root(directory) if url else None
    if url and root and not directory.exists():
        directory.mkdir(parents=True)
        _pull(root, url, f"{directory.relative_to(root)}/")
    return directory


def push(directory: Path) -> None:
    """Write the files of the mirror `directory` that changed since the last time to the store.

    Files that are gone here are deleted there. Does nothing where `directory` stands for no URL. Raises
    UserError where the store cannot be written.
    """
    url = stores.origin(directory)
    if url is None:
        return
    with _turn:
        known = _known[directory]
        found = {
            str(path.relative_to(directory)): path
            for path in directory.rglob("*")
            if path.is_file() and not path.name.endswith(".partial")
        }
        for name, path in found.items():
            with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                state = _state(path)
                if known.get(name) != state:
                    stores.upload(path, f"{url}/{name}")
                    known[name] = state
        for name in known.keys() - found.keys():
            stores.delete(f"{url}/{name}")
            del known[name]


@contextlib.contextmanager
def pushed(directory: Path) -> Iterator[None]:
    """Push the mirror `directory` once a minute, and when the context ends."""
    if stores.origin(directory) is None:
        yield
        return
    try:
        with repeated(lambda: push(directory), _INTERVAL, "mirror"):
            yield
    finally:
        push(directory)


def output(url: str) -> Path:
    """Return a path for a file that this process will write, which `push_outputs` then writes to `url`."""
    url = stores.check(url, write=True)
    parent, _, name = url.rpartition("/")
    directory = stores.stand_in(parent)
    _known[directory] = {}
    _outputs.append(directory)
    return directory / name


def push_outputs() -> None:
    """Write all outputs to their URLs. Raises UserError where the store cannot be written."""
    while _outputs:
        push(_outputs.pop())


def _pull(root: Path, url: str, below: str) -> None:
    """Fetch the files at `url` into the mirror `root`, whose part `below` it is."""
    entries = stores.entries(url, deep=bool(below))
    for name in entries:
        path = root / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stores.download(f"{url}/{name}", path)
        _known[root][below + name] = _state(path)


def _root(path: Path) -> Path | None:
    """Return the mirror that `path` lies in."""
    return next((parent for parent in (path, *path.parents) if parent in _known), None)


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
