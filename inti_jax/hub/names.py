"""Read the names of files and repositories on the Hugging Face Hub.

The forms are `hf://org/name`, `hf://org/name@revision`, `hf://org/name@revision/path/file`, and without
`hf://` the names of repositories (`org/name`) and open_clip's names of models (`ViT-B-16/openai`).
"""

import dataclasses
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from inti_jax.errors import UsageError
from inti_jax.host import stores
from inti_jax.host.names import printable
from inti_jax.host.paths import local_path, run_path
from inti_jax.hub.published import OPEN_CLIP

SCHEME = "hf://"
# An organisation's or user's name and a repository's, as the Hub allows them.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Revisions with a slash that need no %2F: those of discussions, and the Hub's own conversions.
_REFERENCES = re.compile(r"refs/(?:pr/\d+|convert/[\w.-]+)", re.ASCII)
_REVISION = re.compile(r"[\w.+-][\w.+/-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Suffixes with which `a/b` is a file that is missing, and no repository.
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".json", ".gz", ".zip", ".tar")


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository on the Hub, or a file in it, at a revision; None is the repository's default.

    `written` is the text that the user wrote where that may as well be a path on this machine.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    written: str | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        """Write the name in the form that holds all of it."""
        revision = self.revision
        if revision is not None and not _REFERENCES.fullmatch(revision):
            revision = quote(revision, safe="+")
        return (
            f"{SCHEME}{self.repository}"
            + ("" if revision is None else f"@{revision}")
            + ("" if self.file is None else f"/{self.file}")
        )

    @property
    def name(self) -> str:
        """The last part, as of a path."""
        return (self.file or self.repository).rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Tell whether the revision is a commit's hash, which stands for the same files for ever."""
        return self.revision is not None and is_commit(self.revision)


# What users name: something on this machine, or on the Hub.
Place = Path | HubName


def is_commit(revision: str) -> bool:
    """Tell whether `revision` is a commit's full hash."""
    return _COMMIT.fullmatch(revision) is not None


def place(text: str | os.PathLike[str]) -> Place:
    """Read text that names something on this machine or on the Hub. What exists here wins.

    A `Path` is always on this machine. Raises UsageError for an `hf://` name that is malformed, for weights
    that open_clip's model of that name does not have, and where `paths.local_path` does.
    """
    if not isinstance(text, str):
        return local_path(text)
    if text.startswith(SCHEME):
        return _parse(text)
    if stores.is_url(text) or os.path.lexists(text):
        return run_path(text)
    return _bare(text) or local_path(text)


def local_or_uri(text: str | os.PathLike[str] | HubName) -> Place:
    """Read text that names something on the Hub with `hf://` alone. Raises the errors of `place`."""
    if isinstance(text, HubName):
        return text
    text = os.fspath(text)
    return _parse(text) if text.startswith(SCHEME) else run_path(text)


def _parse(text: str) -> HubName:
    """Read a name that starts with `hf://`."""
    repository, _, rest = text.removeprefix(SCHEME).partition("/")
    second, slash, file = rest.partition("/")
    name, at, revision = second.partition("@")
    if at:
        after = f"{revision}{slash}{file}"
        if found := _REFERENCES.match(after):
            revision, file = found[0], after[found.end() :].removeprefix("/")
        revision = unquote(revision)
    repository = f"{repository}/{name}"
    if repository.startswith(("datasets/", "spaces/", "buckets/", "kernels/")):
        raise UsageError(f"{printable(text)}: only repositories of models are taken, as {SCHEME}org/name")
    if not _is_repository(repository):
        raise UsageError(
            f"{printable(text)} is no name on the Hugging Face Hub: write {SCHEME}org/name, "
            f"{SCHEME}org/name@revision or {SCHEME}org/name/path/file.safetensors"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{printable(text)}: the revision after @ should be a branch, a tag or a commit")
    if file and not is_plain(file):
        raise UsageError(f"{printable(text)}: {printable(file)!r} is no path in a repository")
    return HubName(repository, revision if at else None, file or None)


def _bare(text: str) -> HubName | None:
    """Read a name without `hf://`; None where the text can only be a path."""
    name, at, revision = text.partition("@")
    model, _, tag = name.partition("/")
    known = {weights: repository for (of, weights), repository in OPEN_CLIP.items() if of == model}
    if known:
        repository = known.get(tag.lower().replace("-", "_"))  # as open_clip reads it
        if repository is None:
            raise UsageError(
                f"{printable(text)}: there is no such file or directory; open_clip's weights of {model} that "
                f"are known here are {', '.join(known)}"
            )
        return dataclasses.replace(_parse(f"{SCHEME}{repository}{at}{revision}"), written=text)
    if text.endswith(_FILES) or not _is_repository(name):
        return None
    try:
        return dataclasses.replace(_parse(SCHEME + text), written=text)
    except UsageError:
        return None


def _is_repository(text: str) -> bool:
    return _REPOSITORY.fullmatch(text) is not None and "--" not in text and ".." not in text


def is_plain(file: str) -> bool:
    """Tell whether a file's name in a repository is a path below it on any system."""
    parts = file.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and file.isprintable()
        and "\\" not in file
        and ":" not in file
    )
