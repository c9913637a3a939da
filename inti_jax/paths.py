"""Paths as users write them: the one place that turns a text from outside into a path."""

import os
from pathlib import Path

from inti_jax.errors import UsageError


def local_path(text: str | os.PathLike[str]) -> Path:
    """Turn a user's text into a path on this machine, with a leading `~` or `~user` expanded.

    A shell expands `~` at the start of a word alone: not in `--data_dir=~/data`, and not in a config file.
    Where `~name` is no user's home but a file, it is that file. Raises UsageError for an unknown home, a URL
    (of which pathlib would make a directory `gs:`), an empty text and a null character.
    """
    text = os.fspath(text)
    if "://" in text:
        raise UsageError(
            f"{text} is a URL: mount the bucket (gcsfuse) and give the path there, see docs/pods.md"
        )
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
    # `./~x` is `~x` to pathlib, which would be expanded when it is read again, from a run's config.json say.
    return path.absolute() if str(path).startswith("~") else path
