"""Write and read the manifest of a prepared dataset: its videos, its rejected files and their hashes.

The manifest is `manifest.json` beside the dataset's files. It is the last file written, so a directory that
has one is a finished dataset.
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

# Between the labels of a video that has several, in tables and in manifests.
SEPARATOR = ";"


@dataclasses.dataclass(frozen=True)
class Video:
    """One video of the dataset.

    `label` is the class name, or the names with `SEPARATOR` between them in a dataset with several labels a
    video. `bytes` is the size of the encoded video. `doubtful` is the number of frames
    that are damaged or missing, see `decode.VideoInfo`. It is 0 where a dataset is older than the count.
    """

    id: str
    label: str
    frames: int
    fps: float
    height: int
    width: int
    bytes: int
    sha256: str
    doubtful: int = 0


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A file that was left out, with its source and a one-line reason."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the files that hold a split's videos in order, by name, number of videos and hash."""

    file: str
    count: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, its videos in dataset order.

    `sha256` covers each video's id, label and content: two splits with equal hashes hold the same examples.
    It does not depend on `shards`, which is empty in datasets that are older than the list.
    """

    count: int
    sha256: str
    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]
    shards: tuple[Shard, ...] = ()

    @classmethod
    def of(
        cls, videos: Iterable[Video], rejected: Iterable[Rejected], shards: Iterable[Shard] = ()
    ) -> "Split":
        """Make a split of its videos, and compute its hash."""
        videos = tuple(videos)
        sha256 = digest([[v.id, v.label, v.sha256] for v in videos])
        return cls(len(videos), sha256, videos, tuple(rejected), tuple(shards))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a dataset's manifest.

    `sha256` covers name, version, labels and the splits' hashes, and `multi_label` where it is True: then
    each video has one label or more, see `labels_of`. `source` is the fingerprint of the source
    that the dataset was prepared from. `sampling` is the `data.sampling` that belongs to it, or "". Neither
    these two nor the rejected files are part of `sha256`, for they do not change the examples. `files` has
    the hashes of TFDS's metadata.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    source: str
    sha256: str
    sampling: str = ""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    multi_label: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        version: str,
        labels: Iterable[str],
        splits: dict[str, Split],
        source: str,
        sampling: str = "",
        files: dict[str, str] | None = None,
        multi_label: bool = False,
    ) -> "Manifest":
        """Make a manifest, and compute its hash."""
        labels = tuple(labels)
        hashes = sorted((split_name, split.sha256) for split_name, split in splits.items())
        kind = ["multi_label"] if multi_label else []
        sha256 = digest([[name, version, *kind], labels, *hashes])
        return cls(name, version, labels, splits, source, sha256, sampling, files or {}, multi_label)

    def labels_of(self, video: Video) -> tuple[str, ...]:
        """Return the labels of a video of the dataset, which are one unless `multi_label`."""
        return labels_in(video.label, self.multi_label)

    def write(self, directory: Path) -> None:
        """Write the manifest into `directory`; readers see all of it or nothing.

        The file also has `checksum`, a hash of the whole manifest.
        """
        path = directory / FILE_NAME
        partial = path.with_suffix(".partial")
        contents = dataclasses.asdict(self)
        if not self.multi_label:
            del contents["multi_label"]  # so that the file is as it was before the key
        contents["checksum"] = digest([contents])
        with partial.open("w") as file:
            json.dump(contents, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def summary(self) -> dict[str, Any]:
        """Return the counts and hashes without the lists of videos, JSON-able."""
        splits = {
            name: {"count": split.count, "rejected": len(split.rejected), "sha256": split.sha256}
            for name, split in self.splits.items()
        }
        facts = {"name": self.name, "version": self.version, "sha256": self.sha256, "sampling": self.sampling}
        return facts | {"splits": splits, "multi_label": self.multi_label}


def read(directory: Path) -> Manifest:
    """Read the manifest in `directory` and check its hashes.

    Raises UserError if it cannot be read, or if its hashes do not match its contents.
    """
    path = directory / FILE_NAME
    try:
        raw = json.loads(path.read_text())
        # Keys that are read with a default are missing in datasets that are older than the key.
        checksum = raw.pop("checksum", None)
        unchanged = checksum is None or checksum == digest([raw])
        splits = {
            name: Split.of(
                [Video(**video) for video in split["videos"]],
                [Rejected(**rejected) for rejected in split["rejected"]],
                [Shard(**shard) for shard in split.get("shards", ())],
            )
            for name, split in raw["splits"].items()
        }
        source, sampling, files = raw.get("source", ""), raw.get("sampling", ""), raw.get("files", {})
        multi_label = raw.get("multi_label", False)
        manifest = Manifest.of(
            raw["name"], raw["version"], raw["labels"], splits, source, sampling, files, multi_label
        )
        as_written = (raw["sha256"], {name: split["sha256"] for name, split in raw["splits"].items()})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): prepare the dataset again") from None
    if not unchanged or as_written != (
        manifest.sha256,
        {name: split.sha256 for name, split in splits.items()},
    ):
        raise UserError(
            f"{path} was changed after the dataset was prepared: its hashes do not match its contents"
        )
    return manifest


def labels_in(text: str, multi_label: bool) -> tuple[str, ...]:
    """Return the labels that `Video.label` means in a dataset that is or is not `multi_label`."""
    return tuple(text.split(SEPARATOR)) if multi_label else (text,)


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(lines: Iterable[Any]) -> str:
    """Compute the SHA-256 of the lines as JSON, in hex.

    JSON keeps any two different lists of lines apart.
    """
    sha256 = hashlib.sha256()
    for line in lines:
        sha256.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return sha256.hexdigest()
