"""What every builder shares: videos are checked, written as ArrayRecord by TFDS, and listed in a manifest."""

import collections
import contextlib
import hashlib
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from inti_jax.data import decode, manifest
from inti_jax.errors import UserError

# Size of a shard, and of what a build holds in memory: TFDS keeps the examples of the shard it writes.
_SHARD_BYTES = 64 * 2**20
_SECONDS_BETWEEN_LINES = 10

# A video with its facts and its hash, or why it is rejected.
_Checked = tuple[bytes, decode.VideoInfo, str] | decode.DecodeError


class Clip(NamedTuple):
    """A video to be: its id, its class, what `VideoBuilder.read` makes it from, and its size in bytes.

    The size only decides the number of shards, so an estimate will do.
    """

    id: str
    label: str
    source: Any
    bytes: int


def fingerprint(labels: Sequence[str], splits: Mapping[str, Sequence[Clip]]) -> str:
    """A hash of what a dataset is prepared from: labels in order; each file's split, id, label and size."""
    clips = ([split, clip.id, clip.label, clip.bytes] for split in splits for clip in splits[split])
    return manifest.digest([list(labels), *sorted(clips)])


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: our datasets are in no bucket, and asking for one leaves a temporary directory behind."""


class VideoBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes videos in the order given, as they come: memory does not grow with the dataset.

    A video that `decode.validate` rejects is left out and listed in the manifest. The dataset appears under
    its name only once all its files are complete, the manifest included. Splits without clips are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    sampling = ""  # the `data.sampling` that belongs to the dataset, if there is one

    def __init__(self, *, data_dir: str | Path, labels: Sequence[str], splits: Mapping[str, Sequence[Clip]]):
        self._labels = tuple(labels)
        self._clips = {split: clips for split, clips in splits.items() if clips}
        self._splits: dict[str, manifest.Split] = {}
        super().__init__(data_dir=data_dir)

    def read(self, source: Any) -> bytes:
        """The encoded video that a Clip's `source` stands for. Called from several threads.

        Raises DecodeError if there is none.
        """
        raise NotImplementedError

    def build(self) -> Path:
        """Builds the dataset and returns its directory.

        Raises UserError if a split has no valid video, or the files cannot be written.
        """
        directory = Path(self.data_dir)
        if directory.exists():
            raise UserError(f"{directory} is in the way, and no finished dataset: delete it")
        tfds.disable_progress_bar()
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),  # it talks of downloads
                tempfile.TemporaryDirectory() as downloads,  # and makes a directory for them
            ):
                self.download_and_prepare(file_format="array_record", download_dir=downloads)
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error.strerror or error}") from None
        return directory

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description="Encoded videos, each with one label; manifest.json lists them.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Text(),  # the file's bytes as they are
                    "id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=self._labels),
                    "frames": tfds.features.Scalar(np.int32),
                    "fps": tfds.features.Scalar(np.float32),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, _: Any) -> dict[str, list[Any]]:
        # TFDS writes the shards one after the other, so those of a split can share one stream.
        shards = {}
        for split, clips in self._clips.items():
            count = max(1, min(len(clips), -(-sum(clip.bytes for clip in clips) // _SHARD_BYTES)))
            edges = [len(clips) * shard // count for shard in range(count + 1)]
            stream = self._examples(split)
            shards[split] = [
                lambda stream=stream, size=end - start: _valid(itertools.islice(stream, size))
                for start, end in itertools.pairwise(edges)
            ]
        return shards

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        # TFDS calls this with `data_dir` a temporary directory, which it renames once this returns.
        super()._download_and_prepare(*args, **kwargs)
        source = fingerprint(self._labels, self._clips)
        complete = manifest.Manifest.of(
            self.name, str(self.version), self._labels, self._splits, source, self.sampling
        )
        complete.write(Path(self.data_dir))

    def _examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]] | None]:
        """One element a clip, None where it is rejected; notes the split's manifest at the end."""
        clips = self._clips[split]
        videos, rejected = [], []
        for clip, checked in zip(clips, _progress(self._checked(clips), len(clips), split), strict=True):
            if isinstance(checked, decode.DecodeError):
                rejected.append(manifest.Rejected(clip.id, str(checked)))
                example = None
            else:
                video, info, sha256 = checked
                facts = {"frames": info.frames, "fps": info.fps, "height": info.height, "width": info.width}
                videos.append(
                    manifest.Video(id=clip.id, label=clip.label, bytes=len(video), sha256=sha256, **facts)
                )
                example = len(videos), {"video": video, "id": clip.id, "label": clip.label, **facts}
            # Noted with the last clip: nothing asks for what comes after it.
            if len(videos) + len(rejected) == len(clips):
                if not videos:
                    raise UserError(
                        f"no video of `{split}` can be decoded; the first, {rejected[0].source}: "
                        f"{rejected[0].reason}"
                    )
                self._splits[split] = manifest.Split.of(videos, rejected)
            yield example

    def _checked(self, clips: Sequence[Clip]) -> Iterator[_Checked]:
        """Each clip's video, facts and hash, or why it is rejected; in order, a few ahead at a time."""
        # FFmpeg releases the interpreter's lock, so threads do, and share the builder.
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            pending: collections.deque[Future[_Checked]] = collections.deque()
            try:
                for clip in clips:
                    pending.append(pool.submit(self._check, clip))
                    if len(pending) > 2 * threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _check(self, clip: Clip) -> _Checked:
        try:
            video = self.read(clip.source)
            return video, decode.validate(video), hashlib.sha256(video).hexdigest()
        except decode.DecodeError as error:
            return error


def _valid(examples: Iterable[tuple[int, dict[str, Any]] | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    return (example for example in examples if example is not None)


def _progress(items: Iterable[Any], total: int, split: str) -> Iterator[Any]:
    """Passes `items` on, reporting on stderr: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, desc=split, total=total, unit="video", file=sys.stderr)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        if done == total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{split}: {done} of {total} videos", file=sys.stderr, flush=True)
        yield item
