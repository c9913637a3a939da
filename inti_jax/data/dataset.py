"""Read videos by index, from a prepared dataset or from plain files."""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.data import copies, manifest, remote
from inti_jax.data.builders import frames, registry
from inti_jax.data.builders.files import read_file
from inti_jax.data.builders.frames import USUAL_RATE, Frames
from inti_jax.data.codec import decode
from inti_jax.errors import UserError
from inti_jax.host import limits, paths, stores

log = logging.getLogger("inti_jax")


class Example(NamedTuple):
    """One encoded video and its facts.

    `label` is an index into the dataset's labels, or -1. In a dataset with several labels a video it is a
    tuple of indices. If frames are decoded already, `decoded` has
    all that will be asked for, by index. If it is None, `decoder` decodes them.
    """

    id: str
    label: int | tuple[int, ...]
    video: bytes
    frames: int
    fps: float
    height: int
    width: int
    decoded: Mapping[int, np.ndarray] | None = None
    decoder: decode.Decoder = decode.decode_frames

    @property
    def info(self) -> decode.VideoInfo:
        """The facts of the video that decoding found."""
        return decode.VideoInfo(self.frames, self.fps, self.height, self.width)

    def frames_at(self, indices: Int64[np.ndarray, " T"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Return the frames at `indices`. Raises DecodeError."""
        if self.decoded is None:
            return self.decoder(self.video, indices, self.frames)
        return np.stack([self.decoded[index] for index in indices.tolist()])


@runtime_checkable
class Source(Protocol):
    """A source of videos by index; reading one may raise `decode.DecodeError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class LabelledSource(Source, Protocol):
    """A source of videos whose `label` is an index into `labels`."""

    labels: tuple[str, ...]


@runtime_checkable
class MultiLabelSource(LabelledSource, Protocol):
    """A source that may have several labels a video: where `multi_label`, `label` is a tuple of indices."""

    multi_label: bool


class VideoDataset:
    """One split of a prepared dataset, by index.

    Several threads may read it. It pickles as its location, so a worker process opens its own files. The
    directory of a dataset in a bucket stands for its URL, and has what describes it; see `remote`.
    """

    copying: copies.Copying | None = None  # in the process that opened it, where it has a cache

    def __init__(
        self,
        directory: Path,
        split: str,
        labels: tuple[str, ...],
        summary: dict[str, Any],
        decoder: decode.Decoder = decode.decode_frames,
    ):
        self.directory = directory
        self.split = split
        self.labels = labels
        self.manifest = summary
        self.decoder = decoder
        self.multi_label: bool = summary["multi_label"]
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()  # keeps the path that `_opened` reads from
        self._opened: Any = None

    def __len__(self) -> int:
        return self.manifest["splits"][self.split]["count"]

    def __getitem__(self, index: int) -> Example:
        records = self._records()
        try:
            record = records[index]
        except (RuntimeError, OSError) as error:  # the reader found a damaged or unreadable block
            reason = str(error).partition("\n")[0]
            raise decode.DecodeError(
                f"record {index} of `{self.split}` in {self.directory} cannot be read: {reason}"
            ) from None
        label = tuple(map(int, record["labels"])) if self.multi_label else int(record["label"])
        return Example(
            id=record["id"].decode(),
            label=label,
            video=record["video"],
            frames=int(record["frames"]),
            fps=float(record["fps"]),
            height=int(record["height"]),
            width=int(record["width"]),
            decoder=self.decoder,
        )

    @property
    def read_from(self) -> str:
        """The directory of the records: here, the URL of one in a bucket, or that of the copies of all."""
        url = stores.origin(self.directory)
        if url is None or (self.copying is not None and self.copying.whole):
            return str(self.directory)
        return url

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Every video's id, in dataset order."""
        return tuple(video.id for video in manifest.read(self.directory).splits[self.split].videos)

    @cached_property
    def classes(self) -> Int32[np.ndarray, " N"] | Bool[np.ndarray, "N K"]:
        """Every video's class, an index into `labels`, in dataset order.

        In a dataset with several labels a video, these are rows that are True for the video's labels.
        """
        index = {label: number for number, label in enumerate(self.labels)}
        contents = manifest.read(self.directory)
        videos = contents.splits[self.split].videos
        if not self.multi_label:
            return np.array([index[video.label] for video in videos], np.int32)
        rows = [[index[label] for label in contents.labels_of(video)] for video in videos]
        return np.array([multi_hot(row, len(self.labels)) for row in rows])

    @cached_property
    def frames(self) -> Int32[np.ndarray, " N"]:
        """Every video's number of frames, in dataset order."""
        videos = manifest.read(self.directory).splits[self.split].videos
        return np.array([video.frames for video in videos], np.int32)

    def short(self, frames: int) -> int:
        """Count the videos with fewer than `frames` frames, see `sampling.span`."""
        return int((self.frames < frames).sum())

    def _records(self):
        with self._lock:
            if self._opened is None:
                # Slow to import, so imported only when records are read.
                import tensorflow_datasets as tfds

                directory = self._stack.enter_context(paths.plain(self.directory))
                builder = tfds.builder_from_directory(directory)
                # Readers keep a shard open once they have read from it.
                shards = builder.info.splits[self.split].num_shards
                needed = limits.open_files() + shards
                if (limit := limits.raise_file_limit(needed + limits.SPARE_FILES)) < needed:
                    raise UserError(
                        f"{self.directory}: the {shards} shards of `{self.split}` need {needed} open files, "
                        f"and the hard limit is {limit}: raise it (ulimit -Hn)"
                    )
                if stores.origin(self.directory):
                    split = builder.info.splits[self.split]
                    names = [Path(path).name for path in split.filepaths]
                    self._opened = remote.Records(
                        self.directory,
                        list(zip(names, split.shard_lengths, strict=True)),
                        builder.info.features.deserialize_example_np,
                    )
                else:
                    self._opened = builder.as_data_source(self.split)
            return self._opened

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoDataset, (self.directory, self.split, self.labels, self.manifest, self.decoder)


class Subset:
    """Some videos of a split, by their place among them: the same ones each time.

    They are spread evenly over the videos in the order of their classes, so each class has its share of them
    to within one video. Of several labels the first counts.
    """

    def __init__(self, dataset: VideoDataset, count: int):
        """Choose `count` videos, at most all."""
        classes = dataset.classes if dataset.classes.ndim == 1 else dataset.classes.argmax(axis=1)
        by_class = np.argsort(classes, kind="stable")
        # The middles of `count` equal parts.
        places = (2 * np.arange(count) + 1) * len(dataset) // (2 * count)
        self.index: Int64[np.ndarray, " count"] = np.sort(by_class[places])
        self.labels = dataset.labels
        self.multi_label = dataset.multi_label
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        return self._dataset[int(self.index[index])]


def multi_hot(labels: Sequence[int], classes: int) -> Bool[np.ndarray, " K"]:
    """Make a row with True at each of `labels`, for K = `classes`."""
    row = np.zeros(classes, bool)
    row[list(labels)] = True
    return row


class FileDataset:
    """Plain video files and frame folders, by index, without labels.

    A video is decoded once, when it is read. `choose` maps a video's number of frames to the indices of the
    frames to keep.
    """

    def __init__(self, paths: Sequence[Path], choose: Callable[[int], Int64[np.ndarray, " T"]]):
        self._paths = tuple(paths)
        self._choose = choose

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        path = self._paths[index]
        video = frames.read(Frames(path, USUAL_RATE)) if path.is_dir() else read_file(path)
        info, decoded = decode.decode_and_validate(video, self._choose)
        return Example(str(path), -1, video, info.frames, info.fps, info.height, info.width, decoded)


def open_dataset(
    name: str,
    data_dir: str | Path,
    split: str,
    decoder: decode.Decoder = decode.decode_frames,
    cache: copies.Cache | None = None,
) -> VideoDataset:
    """Open the newest version of a prepared dataset, whose clips `decoder` will decode.

    With `cache`, the split's shards are copied there in the background if the dataset is in a bucket. Where
    all of them are there, the bucket is not needed.

    Raises UserError if the dataset or the split is missing, unreadable or different from its manifest.
    """
    directory = _directory(name, data_dir, split, cache)
    if directory is None:
        what = f"folder --source ... --name {name}"
        if name in registry.NAMES:
            what = name if name in registry.EMBEDDED else f"{name} --source ..."
        raise UserError(
            f"dataset `{name}` is not in {data_dir}: "
            f"run `python -m inti_jax.prepare {what} --data_dir {data_dir}`; "
            f"found there: {', '.join(_prepared(data_dir)) or 'no dataset'}"
        )
    contents = manifest.read(directory)
    if split not in contents.splits:
        share = ", or with --val_share above 0 and classes of two videos" if split == "val" else ""
        raise UserError(
            f"dataset `{name}` in {data_dir} has no split `{split}`: it has {', '.join(contents.splits)}; "
            f"delete {directory} and prepare it again from a source that has `{split}`{share}"
        )
    dataset = VideoDataset(directory, split, contents.labels, contents.summary(), decoder)
    _check_files(dataset)
    if cache is not None and stores.origin(directory):
        shards = contents.splits[split].shards
        dataset.copying = copies.Copying(cache, directory, split, shards).start(dataset)
    return dataset


def open_configured(data: config.Data, split: str) -> VideoDataset:
    """Open the dataset that a configuration names, with its cache. Raises the errors of `open_dataset`."""
    return open_dataset(data.name, data.data_dir, split, cache=copies.Cache.of(data))


def check_loss(dataset: VideoDataset, loss: config.LossName) -> None:
    """Raise ConfigError where `train.loss` is not for the number of labels that each video has."""
    suits = config.MULTI_LABEL_LOSSES if dataset.multi_label else config.SINGLE_LABEL_LOSSES
    if loss not in suits:
        raise ConfigError(
            f'config: `train.loss` is "{loss}", and each video of {dataset.directory} has '
            f"{'one label or more' if dataset.multi_label else 'one label'}: set it to "
            + " or ".join(f'"{name}"' for name in suits)
        )


def find_dataset(name: str, data_dir: str | Path) -> Path | None:
    """Find the directory of the newest finished version of a dataset, or None.

    For a dataset in a bucket it is one on this machine that stands for the version's URL, with the files that
    describe it. Raises UserError where the bucket cannot be read.
    """
    if (url := _url(data_dir)) is None:
        found = {
            path.parent.name: path.parent for path in Path(data_dir, name).glob(f"*/{manifest.FILE_NAME}")
        }
        version = remote.newest(found)
        return found[version] if version else None
    files = remote.versions(f"{url}/{name}")
    version = remote.newest(files)
    if version is None:
        return None
    return remote.described(f"{url}/{name}/{version}", files[version])


def _directory(name: str, data_dir: str | Path, split: str, cache: copies.Cache | None) -> Path | None:
    """Find a dataset as `find_dataset` does, or in the cache, also where the bucket cannot be read."""
    url = _url(data_dir)
    if url is None or cache is None:
        return find_dataset(name, data_dir)
    try:
        files = remote.versions(f"{url}/{name}")
        version = remote.newest(files)
        if version is None:
            return None
        there = f"{url}/{name}/{version}"
        directory = cache.directory_of(there, stores.read(f"{there}/{manifest.FILE_NAME}"))
        if not (directory / manifest.FILE_NAME).exists():
            remote.describe_in(directory, files[version])
        return directory
    except UserError as error:
        whole = cache.whole(f"{url}/{name}", split)
        if whole is None:
            raise
        log.warning("%s; going on with the copy in %s", error, cache.directory)
        return whole


def directory_to_write(data_dir: str | Path) -> Path:
    """Return the directory in which datasets are built, which for a URL is one that stands for it.

    Raises the errors of `local_path`, and UserError where datasets cannot lie at the URL.
    """
    url = _url(data_dir)
    return stores.stand_in(url) if url else paths.local_path(data_dir)


def _url(data_dir: str | Path) -> str | None:
    """Return the URL of a directory in a store, or None for one on this machine."""
    text = str(data_dir)
    return (
        stores.check_opened(text, "datasets", "ArrayRecord") if stores.is_url(text) else stores.origin(text)
    )


def _prepared(data_dir: str | Path) -> list[str]:
    if url := _url(data_dir):
        return remote.names(url)
    names = (path.name for path in Path(data_dir).glob("*") if path.is_dir())
    return sorted(name for name in names if find_dataset(name, data_dir))


def _check_files(dataset: VideoDataset) -> None:
    try:
        records = len(dataset._records())
        if records:
            dataset._records()[0]
    except UserError:
        raise
    except Exception as error:  # whatever the readers raise for missing or damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"{dataset.directory} cannot be read, prepare it again: {reason}") from None
    if records != len(dataset):
        raise UserError(
            f"{dataset.directory} has {records} records, its manifest {len(dataset)}: prepare it again"
        )
