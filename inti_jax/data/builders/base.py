"""Define the base of all builders: check videos, write them as ArrayRecord with TFDS, write a manifest."""

import contextlib
import copyreg
import dataclasses
import functools
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from inti_jax.data import manifest, parallel
from inti_jax.data.builders.frames import Frames
from inti_jax.data.builders.journal import Journal, Part
from inti_jax.data.codec import decode, reencode
from inti_jax.errors import UsageError, UserError
from inti_jax.host import limits, paths, stores

# Least size of a shard, in bytes of the source, if a split has several shards.
_SHARD_BYTES = 64 * 2**20
# Most shards of a split. Readers keep all shards open, and the usual limit of a process is 1,024 open files.
_MOST_SHARDS = 512

# A video with its facts and its hash, or the error for which it is rejected.
_Checked = tuple[bytes, decode.VideoInfo, str] | decode.DecodeError


class Clip(NamedTuple):
    """A video to write: its id, its label, the source that `VideoBuilder.read` takes, and its size in bytes.

    The size only decides how the clips are sharded, so an estimate is enough.
    """

    id: str
    label: str
    source: Any
    bytes: int


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a build. Only `short_side` and `strict` change the dataset's contents.

    `short_side` is that of `reencode.reencode`, or None to leave videos as they are. With `strict`, a video
    with any doubtful frame is rejected; without, one with a larger share of them than `decode.MOST_DOUBTFUL`.
    `workers` is the number of threads on this machine, by default one a core. `beam_runner` names an Apache
    Beam runner to use instead, and `beam_options` are its flags without dashes (`region=europe-west4`).
    """

    short_side: int | None = None
    strict: bool = False
    workers: int | None = None
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


def fingerprint(
    labels: Sequence[str],
    splits: Mapping[str, Sequence[Clip]],
    options: Options | None = None,
    *,
    multi_label: bool = False,
) -> str:
    """Hash a dataset's source: the labels in order, and each file's split, id, label and size.

    The hash also covers the rate and the frame limit of frame folders, and those options that change the
    dataset's contents if they are not the defaults, `multi_label` among them.
    """
    clips = (
        [split, clip.id, clip.label, clip.bytes, *_settings(clip.source)]
        for split in splits
        for clip in splits[split]
    )
    options = options or Options()
    changed = [] if options.short_side is None else [{"short_side": options.short_side}]
    changed += [{"strict": True}] if options.strict else []
    changed += [{"multi_label": True}] if multi_label else []
    return manifest.digest([list(labels), *sorted(clips), *changed])


def _settings(source: Any) -> list[Any]:
    return [str(source.rate), source.limit or 0] if isinstance(source, Frames) else []


def shard_edges(clips: Sequence[Clip]) -> list[int]:
    """Return the index of the first clip of each shard of a split, followed by the number of clips.

    The result depends on the clips alone.
    """
    total = sum(clip.bytes for clip in clips)
    count = max(1, min(len(clips), -(-total // _SHARD_BYTES), _MOST_SHARDS))
    return [len(clips) * shard // count for shard in range(count + 1)]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Do nothing: these datasets are in no bucket, and the query leaves a temporary directory behind."""


class VideoBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base class of the builders, which write videos in the given order.

    Videos are written as they come, so memory does not grow with the dataset. A video that `decode.validate`
    rejects is left out and listed in the manifest. The assignment of clips to shards depends on the clips
    alone. The dataset appears under its name once all its files are complete, the manifest included. Until
    then they are in a `Journal`, from which the next build resumes. Splits without clips are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    sampling = ""  # the `data.sampling` that suits the dataset, or empty
    multi_label = False  # whether a clip's `label` is several labels, see `manifest.labels_in`

    def __init__(
        self,
        *,
        data_dir: str | Path,
        labels: Sequence[str],
        splits: Mapping[str, Sequence[Clip]],
        rejected: Mapping[str, Sequence[manifest.Rejected]] | None = None,
    ):
        self._labels = tuple(labels)
        self._rejected = rejected or {}
        self._clips = {split: clips for split, clips in splits.items() if clips}
        self._shards: dict[str, list[_Shard]] = {}
        super().__init__(data_dir=data_dir)
        self._journal = Journal.beside(Path(self.data_dir))

    def __reduce__(self) -> Any:
        # Other machines only call `read`, which uses no attribute of the instance. So pickle the class alone.
        return copyreg.__newobj__, (type(self),)  # type: ignore[attr-defined]

    def read(self, source: Any) -> bytes:
        """Return the encoded video of a Clip's `source`; it depends on the source alone.

        It is called from several threads and, with Apache Beam, on other machines, where the instance has no
        attributes. Raises DecodeError if there is no video.
        """
        raise NotImplementedError

    def build(self, options: Options | None = None) -> Path:
        """Build the dataset, resuming a build that was stopped, and return its directory.

        Raises UserError if the directory exists already, if a split has no valid video, if files cannot be
        written, or if another build of the dataset is at work or was begun with other sources or options.
        """
        options = options or Options()
        directory = Path(self.data_dir)
        if directory.exists():
            raise UserError(f"{directory} is not a finished dataset: delete it")
        beam = _beam_arguments(options)
        source = fingerprint(self._labels, self._clips, options, multi_label=self.multi_label)
        plan = {
            "source": source,
            "shards": {split: len(shard_edges(clips)) - 1 for split, clips in self._clips.items()},
        }
        try:
            with self._journal.opened(plan, options.workers or limits.cores()):
                self._write_shards(options, beam)
                self._describe(source)
                self._journal.finish(directory)
        except KeyboardInterrupt:
            place = stores.shown(str(self._journal.directory))
            print(f"{place} holds the finished part: run the same command to resume", file=sys.stderr)
            raise
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error.strerror or error}") from None
        return directory

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description="Encoded videos, each with one label; manifest.json lists them."
            if not self.multi_label
            else "Encoded videos, each with one label or more; manifest.json lists them.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Text(),  # the bytes of the encoded file
                    "id": tfds.features.Text(),
                    **self._label_feature(),
                    "frames": tfds.features.Scalar(np.int32),
                    "fps": tfds.features.Scalar(np.float32),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _label_feature(self) -> dict[str, Any]:
        label = tfds.features.ClassLabel(names=self._labels)
        return {"labels": tfds.features.Sequence(label)} if self.multi_label else {"label": label}

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Writer(self._journal)

    def _write_shards(self, options: Options, beam: dict[str, Any]) -> None:
        """Let TFDS write the shards that are not complete yet, and record all shards in its metadata."""
        tfds.disable_progress_bar()
        self.info.set_file_format("array_record", override=True)
        splits: list[tfds.core.SplitInfo] = []
        # TFDS would write to a temporary directory. Write to one that stays if the build is stopped.
        place = self.data_dir
        self._data_dir = str(self._journal.dataset)
        try:
            for split in self._clips:
                # One split at a time: TFDS would run the first split's shards again with the second's.
                with self._examples(split, options) as shards:
                    self._shards = {split: shards}
                    try:
                        self._download_and_prepare(None, tfds.download.DownloadConfig(**beam))
                    except (ValueError, RuntimeError) as error:
                        if not beam:
                            raise
                        reason = " ".join(str(error).split())
                        raise UserError(f"--beam_runner {options.beam_runner} failed: {reason}") from error
                # With Beam, TFDS's own list of lengths is sorted by shard number as text: 0, 1, 10, 2.
                lengths = [len(self._complete(name).videos) for name in self._names(split)]
                splits.append(self.info.splits[split].replace(shard_lengths=lengths))
            self.info.set_splits(tfds.core.SplitDict(splits))
        finally:
            self._data_dir, self._shards = place, {}

    def _shard_iterators_per_split(self, _: Any) -> dict[str, list["_Shard"]]:
        return self._shards

    @contextlib.contextmanager
    def _examples(self, split: str, options: Options) -> Iterator[list["_Shard"]]:
        """Yield the shards of a split. Inside the context they can be written."""
        clips = self._clips[split]
        parts = list(zip(self._names(split), itertools.pairwise(shard_edges(clips)), strict=True))
        missing = [clips[start:end] for name, (start, end) in parts if self._journal.part(name) is None]
        if len(missing) < len(parts):
            kept = len(parts) - len(missing)
            print(f"{split}: {kept} of {len(parts)} shards are already written", file=sys.stderr)
        check = functools.partial(_check, self.read, options)
        shard = functools.partial(_Shard, self._journal, self.multi_label)
        if options.beam_runner:
            yield [
                shard(name, clips[start:end], functools.partial(map, check, clips[start:end]))
                for name, (start, end) in parts
            ]
            return
        # TFDS writes the shards one after another, so the missing shards can share one stream of videos.
        rest = itertools.chain.from_iterable(missing)
        done = len(clips) - sum(map(len, missing))
        with (
            contextlib.closing(parallel.in_order(check, rest, options.workers or limits.cores())) as checked,
            contextlib.closing(parallel.progress(checked, len(clips), split, done=done)) as stream,
        ):
            yield [
                shard(name, clips[start:end], functools.partial(itertools.islice, stream, end - start))
                for name, (start, end) in parts
            ]

    def _names(self, split: str) -> list[str]:
        """Return the file names of a split's shards."""
        template, count = self._get_filename_template(split), len(shard_edges(self._clips[split])) - 1
        return [template.sharded_filepath(shard_index=i, num_shards=count).name for i in range(count)]

    def _describe(self, source: str) -> None:
        """Write TFDS's metadata and the manifest beside the shards."""
        splits = {}
        for split in self._clips:
            parts = {name: self._complete(name) for name in self._names(split)}
            found = manifest.Split.of(
                (video for part in parts.values() for video in part.videos),
                (
                    *(rejected for part in parts.values() for rejected in part.rejected),
                    *self._rejected.get(split, ()),
                ),
                (manifest.Shard(name, len(part.videos), part.sha256) for name, part in parts.items()),
            )
            if not found.videos:
                self._journal.discard()  # a build of other files cannot use it
                raise UserError(
                    f"no video of `{split}` can be decoded; the first, {found.rejected[0].source}: "
                    f"{found.rejected[0].reason}"
                )
            splits[split] = found
        place = self._journal.dataset
        shards = {shard.file for split in splits.values() for shard in split.shards}
        for path in place.iterdir():
            if path.name not in shards:  # left by TFDS over Beam, or by a build killed at this point
                path.unlink()
        self.info.write_to_directory(place)
        others = sorted(path for path in place.iterdir() if path.name not in shards)
        files = {path.name: manifest.file_sha256(path) for path in others}
        complete = manifest.Manifest.of(
            self.name, str(self.version), self._labels, splits, source, self.sampling, files, self.multi_label
        )
        complete.write(place)

    def _complete(self, shard: str) -> Part:
        part = self._journal.part(shard)
        if part is None:
            raise UserError(f"{shard} is missing: do all machines share {self._journal.directory}?")
        return part


class _Shard:
    """Callable that gives TFDS the examples of a shard and records them in the journal."""

    def __init__(
        self,
        journal: Journal,
        multi_label: bool,
        name: str,
        clips: Sequence[Clip],
        checked: Callable[[], Iterator[_Checked]],
    ):
        self._journal = journal
        self._multi_label = multi_label
        self._name = name
        self._clips = clips
        self._checked = checked

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if part := self._journal.part(self._name):
            # The shard is complete: TFDS only counts these, and `_Writer` keeps the file.
            yield from ((index, {}) for index in range(len(part.videos)))
            return
        videos, rejected = [], []
        for clip, checked in zip(self._clips, self._checked(), strict=True):
            if isinstance(checked, decode.DecodeError):
                rejected.append(manifest.Rejected(clip.id, str(checked)))
                continue
            video, info, sha256 = checked
            facts = dataclasses.asdict(info)
            doubtful = facts.pop("doubtful")  # not in the records, whose format older datasets share
            videos.append(
                manifest.Video(
                    id=clip.id, label=clip.label, bytes=len(video), sha256=sha256, doubtful=doubtful, **facts
                )
            )
            labels = manifest.labels_in(clip.label, self._multi_label)
            label = {"labels": list(labels)} if self._multi_label else {"label": clip.label}
            example = {"video": video, "id": clip.id, **label, **facts}
            yield len(videos), example
            # The example is written by now. Empty it, because TFDS keeps a shard's examples to count them.
            example.clear()
        self._journal.note(self._name, videos, rejected)


class _Writer(tfds.core.ExampleWriter):
    """Writer of shards through the journal; a shard that is complete already is not written again."""

    def __init__(self, journal: Journal):
        super().__init__(tfds.core.FileFormat.ARRAY_RECORD)
        self._journal = journal

    def write(self, path: Any, examples: Any) -> None:
        if self._journal.part(path.name):
            return
        try:
            with self._journal.writing(path.name) as partial, paths.plain(partial.parent) as directory:
                records = ((key, _canonical(example)) for key, example in examples)
                super().write(directory / partial.name, records)
        except RuntimeError as error:
            if "() failed: " not in str(error):
                raise
            # ArrayRecord reports a system error as: write() failed: No space left on device; ...
            reason = str(error).partition("() failed: ")[2].partition(";")[0]
            raise UserError(f"{path} cannot be written: {reason}") from None


def _canonical(example: bytes) -> bytes:
    """Serialise a record with its fields in a fixed order; TFDS's order differs between processes."""
    return tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True)


def _beam_arguments(options: Options) -> dict[str, Any]:
    """Return TFDS's arguments for writing shards with Apache Beam; empty without a `beam_runner`.

    Raises UserError if Apache Beam is not installed, and UsageError for a runner that it cannot create.
    """
    if options.beam_runner is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise UserError("--beam_runner needs Apache Beam: pip install 'inti_jax[beam]'") from None
    try:
        create_runner(options.beam_runner)
    except (ValueError, ImportError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--beam_runner {options.beam_runner}: {reason}") from None
    flags = PipelineOptions([f"--{option}" for option in options.beam_options])
    return {"beam_runner": options.beam_runner, "beam_options": flags}


def _check(read: Callable[[Any], bytes], options: Options, clip: Clip) -> _Checked:
    most_doubtful = 0.0 if options.strict else decode.MOST_DOUBTFUL
    try:
        video = read(clip.source)
        if options.short_side is None:
            info = decode.validate(video, most_doubtful)
        else:
            video, info = reencode.reencode(video, options.short_side, most_doubtful)
        return video, info, hashlib.sha256(video).hexdigest()
    except decode.DecodeError as error:
        return error
