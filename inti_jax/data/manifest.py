"""The manifest of a prepared dataset: what it holds, what was rejected, and hashes that pin it.

It is `manifest.json` beside the dataset's files, and the last file written, so a directory that has one is
a finished dataset.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inti_jax.errors import UserError

FILE_NAME = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Video:
    """One video of the dataset. `label` is the class name, `bytes` the size of the encoded video."""

    id: str
    label: str
    frames: int
    fps: float
    height: int
    width: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A file that was left out: where it came from, and a one-line reason."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, its videos in dataset order.

    `sha256` is over each video's id, label and content; two splits with equal hashes hold the same examples.
    """

    count: int
    sha256: str
    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]

    @classmethod
    def of(cls, videos: Iterable[Video], rejected: Iterable[Rejected]) -> "Split":
        videos = tuple(videos)
        return cls(len(videos), digest([[v.id, v.label, v.sha256] for v in videos]), videos, tuple(rejected))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A dataset's manifest. `sha256` is over name, version, labels and the splits' hashes.

    `source` is the fingerprint of what the dataset was prepared from, and `sampling` the `data.sampling` that
    belongs to it, or "". They and what was rejected are no part of any hash: they do not change its examples.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    source: str
    sha256: str
    sampling: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        version: str,
        labels: Iterable[str],
        splits: dict[str, Split],
        source: str,
        sampling: str = "",
    ) -> "Manifest":
        labels = tuple(labels)
        hashes = sorted((split_name, split.sha256) for split_name, split in splits.items())
        return cls(
            name, version, labels, splits, source, digest([[name, version], labels, *hashes]), sampling
        )

    def write(self, directory: Path) -> None:
        """Writes the manifest into `directory`; readers see all of it or nothing."""
        path = directory / FILE_NAME
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def summary(self) -> dict[str, Any]:
        """The manifest without its lists of videos: counts and hashes, JSON-able."""
        splits = {
            name: {"count": split.count, "rejected": len(split.rejected), "sha256": split.sha256}
            for name, split in self.splits.items()
        }
        facts = {"name": self.name, "version": self.version, "sha256": self.sha256, "sampling": self.sampling}
        return facts | {"splits": splits}


def read(directory: Path) -> Manifest:
    """The manifest in `directory`, its hashes checked.

    Raises UserError if it cannot be read, or if it does not hash to what it says.
    """
    path = directory / FILE_NAME
    try:
        raw = json.loads(path.read_text())
        splits = {
            name: Split.of(
                [Video(**video) for video in split["videos"]],
                [Rejected(**rejected) for rejected in split["rejected"]],
            )
            for name, split in raw["splits"].items()
        }
        # Absent from a dataset that was prepared before there were fingerprints, which may be any source's.
        source = raw.get("source", "")
        sampling = raw.get("sampling", "")
        manifest = Manifest.of(raw["name"], raw["version"], raw["labels"], splits, source, sampling)
        as_written = (raw["sha256"], {name: split["sha256"] for name, split in raw["splits"].items()})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): prepare the dataset again") from None
    if as_written != (manifest.sha256, {name: split.sha256 for name, split in splits.items()}):
        raise UserError(
            f"{path} was changed after the dataset was prepared: its hashes do not match its contents"
        )
    return manifest


def digest(lines: Iterable[Any]) -> str:
    """SHA-256, in hex, over the lines as JSON, which keeps any two different lists of lines apart."""
    sha256 = hashlib.sha256()
    for line in lines:
        sha256.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return sha256.hexdigest()
