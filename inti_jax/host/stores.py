"""Reach object stores and the web by URL: fetch, list, upload and delete.

No other module asks what kind a URL is. Files come and go through fsspec, whose implementations for Cloud
Storage (`gcsfs`) and S3 (`s3fs`) are extras.

A file or directory that stands for a URL on this machine lies below a directory called `inti-jax-store-*`,
followed by the URL's own parts: `/tmp/inti-jax-store-x1y2/gs/bucket/runs/a` stands for
`gs://bucket/runs/a`. So its URL can be told from its path, in every process and in every message.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inti_jax.errors import UsageError, UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_STANDS_FOR = re.compile(r"[^\s'\"]*/inti-jax-store-[^/\s]+/(gs|s3|https?)/")

# The kinds of URL by what is needed for them. Only in buckets can files be written.
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_WEB = ("http", "https")
# The kinds that Orbax and ArrayRecord open, which read and write buckets themselves.
_OPENED = ("gs",)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object's size in bytes, and a tag that differs wherever its contents do, made by the store."""

    size: int
    tag: str


def is_url(text: str) -> bool:
    """Tell whether a user's text is a URL. A name on the Hub (`hub.names`) is none."""
    return _URL.match(text) is not None and not text.startswith("hf://")


def check(url: str, *, write: bool = False) -> str:
    """Check the form of `url`, and that the library for it is installed. Return it without a last slash.

    Raises UsageError for another scheme than gs, s3, http and https, or a name with `..` or no bucket, and
    with `write` for the web, where nothing can be written; UserError where the extra is missing.
    """
    return _open(url, write=write)[1]


def check_opened(url: str, what: str, library: str) -> str:
    """Check the URL of `what`, which `library` opens itself. Return it without a last slash.

    Raises UserError for a kind of store that it does not open, and the errors of `check` for a URL to write.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in _EXTRAS and scheme not in _OPENED:
        raise UserError(
            f"{public(url)}: {what} lie on a disk or in gs:// alone, since {library} opens no other stores: "
            "give such a place, or mount the bucket"
        )
    return check(url, write=True)


def is_file(url: str) -> bool:
    """Tell whether there is a file at `url`. Raises UserError where that cannot be told."""
    files, url = _open(url)
    with _translated(url):
        return files.isfile(url)


def public(url: str) -> str:
    """Leave out what a URL may have of credentials: a user with a password, and a signature in the query."""
    scheme, rest = url.partition("?")[0].split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def fetch(url: str) -> Path:
    """Download the file at `url` into a cache on this machine, unless it is there; return its path.

    The cache is below `$XDG_CACHE_HOME/inti_jax`. The name holds the store's tag, so that an object that
    changes is fetched anew. A download is renamed to its name once it is whole. Raises UserError where it
    cannot be had.
    """
    files, url = _open(url)
    scheme, _ = url.split("://", 1)
    with _translated(url):
        facts = files.info(url)
        if facts["type"] == "directory":
            raise UserError(f"{public(url)} is a directory, and a file is meant")
        entry = _entry(facts)
        key = hashlib.sha256(f"{url} {entry.size} {entry.tag}".encode()).hexdigest()[:16]
        path = cache() / f"inti-jax-store-{key}" / scheme / public(url).split("://", 1)[1]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache()) as directory:
                partial = Path(directory, "partial")
                files.get_file(url, str(partial))
                found = partial.stat().st_size
                if entry.size not in (-1, found):
                    raise UserError(f"{public(url)}: {found} of its {entry.size} bytes arrived: try again")
                partial.replace(path)
    return path


def download(url: str, path: Path) -> None:
    """Write the file at `url` to `path`."""
    files, url = _open(url)
    with _translated(url):
        files.get_file(url, str(path))


def entries(url: str, *, deep: bool = True) -> dict[str, Entry]:
    """List all objects below the directory `url`, or only those directly in it, by their path below it.

    Raises UserError where there is no such bucket. A directory that is not there has none.
    """
    files, url = _open(url)
    _, rest = url.split("://", 1)
    with _translated(url):
        _check_bucket(files, rest)
        found = files.find(url, detail=True, maxdepth=None if deep else 1)
    names = {name.removeprefix(f"{rest}/"): facts for name, facts in found.items() if name != rest}
    return {name: _entry(facts) for name, facts in names.items() if facts["type"] == "file" and name}


def read(url: str) -> bytes:
    """Return the contents of the file at `url`. Raises UserError where it cannot be had."""
    files, url = _open(url)
    with _translated(url):
        return files.cat_file(url)


def upload(path: Path, url: str) -> None:
    """Write the file at `path` to `url`, as a whole or not at all. Raises UserError where it cannot be."""
    files, url = _open(url, write=True)
    with _translated(url):
        files.put_file(str(path), url)


def delete(url: str) -> None:
    """Delete the file or the directory at `url`, if it is there. Raises UserError where it cannot be."""
    files, url = _open(url, write=True)
    with _translated(url), contextlib.suppress(FileNotFoundError):
        files.rm(url, recursive=True)


def key_values(url: str) -> dict[str, Any]:
    """Return TensorStore's description of the directory `url` in gs:// as a store of keys and values."""
    _, rest = check(url, write=True).split("://", 1)
    bucket, _, path = rest.partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/" if path else ""}


def stand_in(url: str) -> Path:
    """Make the path of a new directory on this machine that stands for `url`; it goes with this process."""
    scheme, rest = url.split("://", 1)
    root = Path(tempfile.mkdtemp(prefix="inti-jax-store-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    path = root / scheme / rest
    path.mkdir(parents=True)
    return path


def standing_for(url: str) -> Path:
    """Return a path that stands for `url` in messages, at which nothing is."""
    return Path(tempfile.gettempdir(), "inti-jax-store-absent", *public(url).split("://", 1))


def origin(path: str | os.PathLike[str]) -> str | None:
    """Return the URL that `path` stands for, or None where it stands for none."""
    text = os.fspath(path)
    url = shown(text)
    return None if url == text else url


def shown(text: str) -> str:
    """Write URLs in place of the paths that stand for them."""
    return _STANDS_FOR.sub(lambda match: f"{match[1]}://", text)


def _open(url: str, *, write: bool = False) -> tuple[Any, str]:
    """Return fsspec's implementation for `url`, and `url` without a last slash. Raises what `check` does."""
    match = _URL.fullmatch(url)
    scheme, rest = (match[1].lower(), match[2].rstrip("/")) if match else ("", "")
    if scheme not in (*_EXTRAS, *_WEB):
        raise UsageError(
            f"{public(url)} is a URL of an unknown kind: gs://, s3://, https:// and http:// can be read"
        )
    if write and scheme in _WEB:
        raise UsageError(
            f"{public(url)}: the web can only be read from: give a path, or a URL of gs:// or s3://"
        )
    # A part `..` would lead out of the directory that stands for the URL on this machine.
    if any(part in ("", ".", "..") for part in rest.split("/")) or "\0" in rest:
        raise UsageError(f"{public(url)} names nothing: it should read {scheme}://NAME/PATH")
    return _filesystem(scheme), f"{scheme}://{rest}"


def _check_bucket(files: Any, rest: str) -> None:
    """Raise UserError where there is no bucket of the name that `rest` starts with."""
    bucket = rest.partition("/")[0]
    if not files.exists(bucket):
        raise UserError(f"there is no bucket `{bucket}`, or it may not be read")


# gcsfs logs a traceback for each request that it gives up. `told` says the same in one line.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@functools.cache
def _filesystem(scheme: str) -> Any:
    """Return fsspec's implementation for `scheme`. Raises UserError where its library is not installed."""
    import fsspec  # imported when a URL is used: most commands never need it

    # Listings are not kept, here and where Orbax and JAX use fsspec: other processes, and TensorStore, write
    # to the same directories.
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        extra = _EXTRAS.get(scheme, "gcs")
        raise UserError(
            f"{scheme}:// needs a library that is not installed: run `pip install 'inti_jax[{extra}]'`"
        ) from None
    except Exception as error:  # credentials that cannot be read, of many kinds
        raise UserError(f"{scheme}:// cannot be used: {_reason(error)}") from None


def cache() -> Path:
    """Make and return the directory of downloads."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inti_jax")
    root.mkdir(parents=True, exist_ok=True)
    return root


def _entry(facts: Mapping[str, Any]) -> Entry:
    """Read an object's size and tag from what fsspec says of it. Each kind of store has names of its own."""
    tags = (facts.get(name) for name in ("md5Hash", "crc32c", "etag", "ETag"))
    size = facts.get("size")
    return Entry(-1 if size is None else int(size), next((str(tag) for tag in tags if tag), ""))


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn the errors of any store into one line about `url`. Errors of this machine's files pass."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise told(url, error) from None


def told(url: str, error: Exception) -> UserError:
    """Make the error for the user of what a store said."""
    url = public(url)
    code = getattr(error, "code", None) or getattr(error, "status", None)
    # gcsfs and TensorStore say some answers only in words.
    words = str(error)
    # A server that cannot be reached is said to lack the file, with the reason as the cause.
    unreachable = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)
    absent = isinstance(error, FileNotFoundError) and not unreachable
    if absent or code == 404 or words.startswith("NOT_FOUND"):
        return UserError(f"{url} does not exist")
    refused = words.startswith(("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED"))
    if isinstance(error, PermissionError) or code in (401, 403) or refused:
        return UserError(
            f"{url}: no permission: log in (`gcloud auth application-default login`, or S3's "
            "credentials), or ask for access to the bucket"
        )
    return UserError(f"{url} cannot be reached: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Summarise an error in a line, without what may hold credentials: the address with its query."""
    said = re.sub(r"\?\S*|(?<=//)[^/@\s]*@", "", " ".join(str(error).split()))
    return textwrap.shorten(said, 160) or type(error).__name__
