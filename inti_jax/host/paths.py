"""Read the paths and URLs that users write, and make paths that any library can read."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TypeVar

from inti_jax.errors import UsageError
from inti_jax.host import mirrors, stores

P = TypeVar("P", bound=PurePath)

# Characters to which no library gives a meaning of its own.
_PLAIN = re.compile(r"[\w./@+=,-]+", re.ASCII)


def local_path(text: str | os.PathLike[str]) -> Path:
    """Turn a user's text into a path on this machine, with a leading `~` or `~user` expanded.

    A shell expands `~` only at the start of a word: not in `--data_dir=~/data`, and not in a config file.
    Where `~name` is no user's home but a file exists under that name, it is that file. Raises UsageError for
    an unknown home, a URL (of which pathlib would make a directory `gs:`), an empty text or a null character.
    """
    text = os.fspath(text)
    if text.startswith("hf://"):
        raise UsageError(
            f"{text} is a name on the Hugging Face Hub, and here a path on this machine is needed"
        )
    if stores.is_url(text):
        raise UsageError(f"{text} is a URL, and here only a path on this machine can be used")
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no path: " + ("it has a null character" if text else "it is empty"))
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:
            if not os.path.lexists(path):
                user = path.parts[0][1:]
                unknown = f"there is no user {user!r}" if user else "the home directory is not known"
                raise UsageError(f"{text}: {unknown}; write ./{text} for a file that is called so") from None
    # pathlib shortens `./~x` to `~x`, which would be expanded when read again, say from a run's config.json.
    return path.absolute() if str(path).startswith("~") else path


def input_path(text: str | os.PathLike[str]) -> Path:
    """Turn a user's text into the path of a file to read; the file of a URL is fetched into a cache first.

    Raises the errors of `local_path`, and UserError where a URL cannot be read.
    """
    text = os.fspath(text)
    return stores.fetch(text) if stores.is_url(text) else local_path(text)


def output_path(text: str | os.PathLike[str]) -> Path:
    """Turn a user's text into the path of a file to write.

    The file of a URL is written on this machine, and to its URL when the command ends. Raises the errors of
    `local_path`, and UserError where nothing can be written at a URL.
    """
    text = os.fspath(text)
    return mirrors.output(text) if stores.is_url(text) else local_path(text)


def path_or_url(text: str) -> Path | str:
    """Turn a user's text into a path, or check the form of a URL, from which nothing is read yet.

    Raises the errors of `local_path` and `stores.check`.
    """
    return stores.check(text) if stores.is_url(text) else local_path(text)


def run_path(text: str | os.PathLike[str]) -> Path:
    """Turn a user's text into the path of a run's directory; that of a URL is a mirror of its small files.

    A file at a URL, such as one of `convert --to trained`, is fetched. Raises the errors of `local_path`, and
    UserError where a URL cannot be read.
    """
    text = os.fspath(text)
    if not stores.is_url(text):
        return local_path(text)
    return stores.fetch(text) if stores.is_file(text) else mirrors.mirror(text)


def run_below(directory: Path, name: str) -> Path:
    """Return the path of the run `name` in a directory of runs, which may be the mirror of one at a URL."""
    url = stores.origin(directory)
    return run_path(f"{url}/{name}") if url else directory / name


@contextlib.contextmanager
def plain(directory: P, gather: Callable[[int], list[int]] = lambda number: [number]) -> Iterator[P]:
    """Give a path to `directory` that any library can read, valid in this process until the context ends.

    Orbax puts a path into a glob, TensorStore puts it into JSON, and ArrayRecord takes only UTF-8, but a
    directory's name may have brackets or any bytes. For such a name the path is the kernel's name of the open
    directory. `gather` makes that the same in all processes: it takes this process's number and gives all
    processes' numbers.
    """
    if _PLAIN.fullmatch(str(directory)) or stores.is_url(str(directory)):
        yield directory
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while len(numbers := set(gather(opened))) > 1:
            # Take the lowest descriptor that is free from the highest of all processes on. The number rises
            # until it is free in each process.
            again = (
                fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, max(numbers)) if opened < max(numbers) else opened
            )
            if again != opened:
                os.close(opened)
            opened = again
        yield type(directory)(f"/proc/self/fd/{opened}")
    finally:
        os.close(opened)
