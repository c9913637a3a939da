"""What every builder shares: videos are checked, written as ArrayRecord by TFDS, and listed in a manifest."""

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
from inti_jax.host import limits, paths

# Smallest size of a shard of many, in bytes of the source.
_SHARD_BYTES = 64 * 2**20
# Most shards of a split: readers keep all of them open, and a process may have 1,024 files.
_MOST_SHARDS = 512

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


@dataclasses.dataclass(frozen=True)
class Options:
    """How a dataset is built. Only `short_side` and `strict` change what is in it.

    `short_side` is that of `reencode.reencode`, or None to leave videos as they are. With `strict` a video
    with any doubtful frame is rejected, else one of more than `decode.MOST_DOUBTFUL`. `workers` threads work
    on this machine, one a core by default; or `beam_runner` names what Apache Beam shall run on, and
    `beam_options` are its flags without dashes (`region=europe-west4`).
    """

    short_side: int | None = None
    strict: bool = False
    workers: int | None = None
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


def fingerprint(
    labels: Sequence[str], splits: Mapping[str, Sequence[Clip]], options: Options | None = None
) -> str:
    """A hash of what a dataset is prepared from: labels in order; each file's split, id, label and size.

    And of the rate and number of frames of frame folders, and of those options that change what is in it,
    where they are not the usual ones.
    """
    clips = (
        [split, clip.id, clip.label, clip.bytes, *_settings(clip.source)]
        for split in splits
        for clip in splits[split]
    )
    options = options or Options()
    changed = [] if options.short_side is None else [{"short_side": options.short_side}]
    changed += [{"strict": True}] if options.strict else []
    return manifest.digest([list(labels), *sorted(clips), *changed])


def _settings(source: Any) -> list[Any]:
    return [str(source.rate), source.limit or 0] if isinstance(source, Frames) else []


def shard_edges(clips: Sequence[Clip]) -> list[int]:
    """Where the shards of a split begin, and the number of its clips: a function of the clips alone."""
    total = sum(clip.bytes for clip in clips)
    count = max(1, min(len(clips), -(-total // _SHARD_BYTES), _MOST_SHARDS))
    return [len(clips) * shard // count for shard in range(count + 1)]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: our datasets are in no bucket, and asking for one leaves a temporary directory behind."""


class VideoBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes videos in the order given, as they come: memory does not grow with the dataset.

    A video that `decode.validate` rejects is left out and listed in the manifest. Which clips are in which
    shard depends on the clips alone. The dataset appears under its name only once all its files are complete,
    the manifest included; until then they are in a `Journal`, where the next build goes on. Splits without
    clips are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    sampling = ""  # the `data.sampling` that belongs to the dataset, if there is one

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
        # What other machines need of a builder is `read`, which needs nothing that an instance has.
        return copyreg.__newobj__, (type(self),)  # type: ignore[attr-defined]

    def read(self, source: Any) -> bytes:
        """The encoded video that a Clip's `source` stands for, of which alone it is a function.

        Called from several threads, and over Apache Beam on other machines, by an instance that has no
        attributes. Raises DecodeError if there is no video.
        """
        raise NotImplementedError

    def build(self, options: Options | None = None) -> Path:
        """Builds the dataset, going on where an earlier build was stopped, and returns its directory.

        Raises UserError if a split has no valid video, or the files cannot be written, or another build of
        the same dataset is at work or was begun with another source or other options.
        """
        options = options or Options()
        directory = Path(self.data_dir)
        if directory.exists():
            raise UserError(f"{directory} is in the way, and no finished dataset: delete it")
        beam = _beam_arguments(options)
        source = fingerprint(self._labels, self._clips, options)
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
            print(
                f"{self._journal.directory} has what is done: the same command goes on from it",
                file=sys.stderr,
            )
            raise
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

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Writer(self._journal)

    def _write_shards(self, options: Options, beam: dict[str, Any]) -> None:
        """Has TFDS write the shards that are not complete yet, and notes all of them in its metadata."""
        tfds.disable_progress_bar()
        self.info.set_file_format("array_record", override=True)
        splits: list[tfds.core.SplitInfo] = []
        # As TFDS does it, but into a directory that stays when the build is stopped.
        place = self.data_dir
        self._data_dir = str(self._journal.dataset)
        try:
            for split in self._clips:
                # By itself: TFDS would run the shards of the first split again with those of the second.
                with self._examples(split, options) as shards:
                    self._shards = {split: shards}
                    try:
                        self._download_and_prepare(None, tfds.download.DownloadConfig(**beam))
                    except (ValueError, RuntimeError) as error:
                        if not beam:
                            raise
                        reason = " ".join(str(error).split())
                        raise UserError(f"--beam_runner {options.beam_runner} failed: {reason}") from error
                # Over Beam, TFDS sorts its own by the shards' numbers as text: 0, 1, 10, 2.
                lengths = [len(self._complete(name).videos) for name in self._names(split)]
                splits.append(self.info.splits[split].replace(shard_lengths=lengths))
            self.info.set_splits(tfds.core.SplitDict(splits))
        finally:
            self._data_dir, self._shards = place, {}

    def _shard_iterators_per_split(self, _: Any) -> dict[str, list["_Shard"]]:
        return self._shards

    @contextlib.contextmanager
    def _examples(self, split: str, options: Options) -> Iterator[list["_Shard"]]:
        """The shards of a split; meanwhile they can be written."""
        clips = self._clips[split]
        parts = list(zip(self._names(split), itertools.pairwise(shard_edges(clips)), strict=True))
        missing = [clips[start:end] for name, (start, end) in parts if self._journal.part(name) is None]
        if len(missing) < len(parts):
            kept = len(parts) - len(missing)
            print(f"{split}: {kept} of {len(parts)} shards were written before", file=sys.stderr)
        check = functools.partial(_check, self.read, options)
        if options.beam_runner:
            yield [
                _Shard(self._journal, name, clips[start:end], functools.partial(map, check, clips[start:end]))
                for name, (start, end) in parts
            ]
            return
        # TFDS writes the shards one after the other, so those that are missing can share one stream.
        rest = itertools.chain.from_iterable(missing)
        done = len(clips) - sum(map(len, missing))
        with (
            contextlib.closing(parallel.in_order(check, rest, options.workers or limits.cores())) as checked,
            contextlib.closing(parallel.progress(checked, len(clips), split, done=done)) as stream,
        ):
            yield [
                _Shard(
                    self._journal,
                    name,
                    clips[start:end],
                    functools.partial(itertools.islice, stream, end - start),
                )
                for name, (start, end) in parts
            ]

    def _names(self, split: str) -> list[str]:
        """The file names of a split's shards."""
        template, count = self._get_filename_template(split), len(shard_edges(self._clips[split])) - 1
        return [template.sharded_filepath(shard_index=i, num_shards=count).name for i in range(count)]

    def _describe(self, source: str) -> None:
        """Writes TFDS's metadata and the manifest beside the shards."""
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
                self._journal.discard()  # what is there is of no use to a build of other files
                raise UserError(
                    f"no video of `{split}` can be decoded; the first, {found.rejected[0].source}: "
                    f"{found.rejected[0].reason}"
                )
            splits[split] = found
        place = self._journal.dataset
        shards = {shard.file for split in splits.values() for shard in split.shards}
        for path in place.iterdir():
            if path.name not in shards:  # TFDS's notes of a run over Beam, or of a build killed at this point
                path.unlink()
        self.info.write_to_directory(place)
        others = sorted(path for path in place.iterdir() if path.name not in shards)
        files = {path.name: manifest.file_sha256(path) for path in others}
        complete = manifest.Manifest.of(
            self.name, str(self.version), self._labels, splits, source, self.sampling, files
        )
        complete.write(place)

    def _complete(self, shard: str) -> Part:
        part = self._journal.part(shard)
        if part is None:
            raise UserError(f"{shard} was not written: do all machines see {self._journal.directory}?")
        return part


class _Shard:
    """Gives TFDS the examples of a shard when it is called, and notes in the journal what they are."""

    def __init__(
        self, journal: Journal, name: str, clips: Sequence[Clip], checked: Callable[[], Iterator[_Checked]]
    ):
        self._journal = journal
        self._name = name
        self._clips = clips
        self._checked = checked

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if part := self._journal.part(self._name):
            # For TFDS to count: `_Writer` keeps the file.
            yield from ((index, {}) for index in range(len(part.videos)))
            return
        videos, rejected = [], []
        for clip, checked in zip(self._clips, self._checked(), strict=True):
            if isinstance(checked, decode.DecodeError):
                rejected.append(manifest.Rejected(clip.id, str(checked)))
                continue
            video, info, sha256 = checked
            facts = dataclasses.asdict(info)
            doubtful = facts.pop("doubtful")  # not in the records, whose form older datasets have as well
            videos.append(
                manifest.Video(
                    id=clip.id, label=clip.label, bytes=len(video), sha256=sha256, doubtful=doubtful, **facts
                )
            )
            example = {"video": video, "id": clip.id, "label": clip.label, **facts}
            yield len(videos), example
            # Written by now. TFDS counts the examples of a shard at its end, and keeps them until then.
            example.clear()
        self._journal.note(self._name, videos, rejected)


class _Writer(tfds.core.ExampleWriter):
    """Writes shards through the journal: under their name once they are complete, and then never again."""

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
            # How ArrayRecord says what the system refuses: write() failed: No space left on device; ...
            reason = str(error).partition("() failed: ")[2].partition(";")[0]
            raise UserError(f"{path} cannot be written: {reason}") from None


def _canonical(example: bytes) -> bytes:
    """The record with its fields in order: TFDS leaves that to chance, and each process has another one."""
    return tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True)


def _beam_arguments(options: Options) -> dict[str, Any]:
    """What TFDS has to be told for shards to be written over Apache Beam; nothing where they are not."""
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
