"""Open a repository on the Hub at one commit, and download the files that are asked for.

The library `huggingface_hub` downloads them into its cache. Here each file is compared with the hash under
which the Hub lists it, before it is used.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from inti_jax.errors import UserError
from inti_jax.host.names import printable
from inti_jax.hub.names import HubName, is_commit, is_plain

log = logging.getLogger("inti_jax")

_CHUNK = 1 << 20
_HASHES = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LARGE = 1_000_000  # bytes of a file whose download is worth a line
_PATIENCE = 10  # seconds until a server that does not answer counts as out of reach
_BROKEN = 500  # the first status with which a server says that it cannot answer


class _Listed(NamedTuple):
    """A file's size and hash in the Hub's listing; None where it states none."""

    size: int | None
    digest: str | None  # sha256 of a large file, Git's sha1 of others


def pin(name: HubName) -> HubName:
    """Return the name at the commit that its revision stands for.

    Without a connection it is the one that it stood for when it was last asked. Raises UserError where there
    is no such repository or revision, where it may not be read, or where neither the Hub nor the cache tells.
    """
    if name.pinned:
        return name
    api, reached = _library(name).HfApi(token=_token()), True
    try:
        # resolve_revision by itself would wait for ever.
        with _explained(name):
            api.model_info(name.repository, revision=name.revision, timeout=_PATIENCE)
    except _UnreachableError:
        reached = False
    with _explained(name):
        found = api.resolve_revision(name.repository, revision=name.revision, local_files_only=not reached)
    if not is_commit(found.resolved):
        raise UserError(_said(name, "the Hub names no commit for it"))
    return dataclasses.replace(name, revision=found.resolved)


class Repository:
    """A repository at one commit. Files are listed and downloaded on demand, each once."""

    def __init__(self, name: HubName):
        """Open the repository of `name`; raises the errors of `pin`."""
        self._library = _library(name)
        self.name = pin(name)

    def __contains__(self, file: str) -> bool:
        """Tell whether the repository has the file; without a connection, whether the cache has it."""
        if self._cached(file) is not None:
            return True
        return not isinstance(self._listing, _UnreachableError) and file in self._listing

    def get(self, file: str) -> Path:
        """Download a file where the cache lacks it, and return its path there.

        Raises UserError where the repository has no such file, it cannot be downloaded, or its bytes are not
        those that the Hub lists; these are removed.
        """
        path, listed = self._cached(file), _Listed(None, None)
        if path is None:
            if isinstance(self._listing, _UnreachableError):
                raise self._listing
            if file not in self._listing:
                raise UserError(_said(self.name, f"the repository has no file {printable(file)}"))
            listed = self._listing[file]
            if listed.size is not None and listed.size >= _LARGE:
                log.info("downloading %s of %s, %.0f MB", file, self.name.repository, listed.size / 1e6)
            with _explained(self.name):
                path = Path(
                    self._library.hf_hub_download(
                        self.name.repository, file, revision=self.name.revision, token=_token()
                    )
                )
        self._check(file, path, listed)
        return path

    def _cached(self, file: str) -> Path | None:
        if not is_plain(file):  # the library raises for these
            return None
        found = self._library.try_to_load_from_cache(self.name.repository, file, revision=self.name.revision)
        return Path(found) if isinstance(found, str) else None

    @cached_property
    def _listing(self) -> "dict[str, _Listed] | _UnreachableError":
        """The files that are at the commit, by name; the error where the Hub cannot be reached."""
        try:
            with _explained(self.name):
                info = self._library.HfApi(token=_token()).model_info(
                    self.name.repository,
                    revision=self.name.revision,
                    files_metadata=True,
                    timeout=_PATIENCE,
                )
        except _UnreachableError as error:
            return error
        return {
            file.rfilename: _Listed(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or ()
            if is_plain(file.rfilename)
        }

    def _check(self, file: str, path: Path, listed: _Listed) -> None:
        """Compare a downloaded file with its size and hash. Raises UserError where they differ."""
        # The library's cache keeps a file under its hash, and links to it.
        blob = path.parent / path.readlink() if path.is_symlink() else path
        digest = listed.digest or (blob.name if _HASHES.fullmatch(blob.name) else None)
        size = path.stat().st_size
        if listed.size in (None, size) and digest in (None, _digest(path, size, digest)):
            return
        for each in (path.resolve(), blob, path):
            each.unlink(missing_ok=True)
        raise UserError(
            _said(
                self.name,
                f"the bytes of {file} are not those that the Hub lists, and were removed: try again",
            )
        )


def _digest(path: Path, size: int, like: str | None) -> str | None:
    """Hash a file as the hash `like` was made: sha256, or Git's sha1 with the size before the bytes."""
    if like is None:
        return None
    digest: Any = hashlib.sha256()
    if len(like) == hashlib.sha1(usedforsecurity=False).digest_size * 2:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cache_directory(name: HubName) -> Path:
    """Make and return the directory of what is made from a repository at a commit, in the library's cache."""
    found = _library(name).cached_assets_path("inti_jax", name.repository, str(name.revision))
    return Path(found)


def check_installed(name: HubName) -> None:
    """Raise UserError where the library is not installed that downloads from the Hub."""
    _library(name)


def _library(name: HubName) -> Any:
    """Import huggingface_hub, which takes a second."""
    try:
        import huggingface_hub
    except ImportError:
        huggingface_hub = None  # type: ignore[assignment]
    if not hasattr(getattr(huggingface_hub, "HfApi", None), "resolve_revision"):
        raise UserError(
            _said(name, 'names on the Hub need the library huggingface_hub: pip install "inti-jax[hub]"')
        )
    return huggingface_hub


def _token() -> str | bool:
    """Return the user's token from the environment; False lets the library send none."""
    return os.environ.get("HF_TOKEN") or False


class _UnreachableError(UserError):
    """The Hub cannot be reached, and the cache does not have what is asked for."""


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn the library's errors into one line about `name`."""
    import httpx2
    from huggingface_hub import errors, is_offline_mode

    token = "the token in HF_TOKEN may not read it" if _token() else "HF_TOKEN is not set"
    try:
        yield
    except (
        errors.RevisionResolutionError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        httpx2.TransportError,
    ):
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub cannot be reached"
        raise _UnreachableError(_said(name, f"it is not in the cache, and {why}")) from None
    except errors.GatedRepoError:
        problem = f"its owners grant access on request at huggingface.co/{name.repository}, and {token}"
    except errors.RevisionNotFoundError:
        problem = f"the repository has no revision {name.revision or 'main'}"
    except errors.RemoteEntryNotFoundError:
        problem = "the Hub lists a file that it does not have"
    except errors.RepositoryNotFoundError:
        problem = f"the Hub has no such repository, or it is private and {token}"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= _BROKEN:
            raise _UnreachableError(
                _said(name, f"it is not in the cache, and the Hub answers with error {status}")
            ) from None
        refused = status in (401, 403)
        problem = f"the Hub refuses it: {token}" if refused else f"the Hub answers with error {status}"
    except errors.HFValidationError:
        problem = "the Hub allows no such name"
    except OSError as error:
        if error.errno is not None:  # of the system, such as a full disk
            raise
        problem = f"the download failed: {_first_line(error)}"
    except Exception as error:  # the library's parts raise no narrower class, for odd answers of a server
        problem = f"the Hub's answer is not understood: {type(error).__name__}: {_first_line(error)}"
    else:
        return
    raise UserError(_said(name, problem)) from None


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), ""))


def _said(name: HubName, problem: str) -> str:
    """Say a problem with a name, and that it is no path either where it could be one."""
    if name.written is None:
        return f"{name}: {problem}"
    return f"{name.written}: there is no such file or directory; as a name on the Hugging Face Hub: {problem}"
