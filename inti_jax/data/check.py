"""Compare a prepared dataset with its manifest, to the last byte."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from inti_jax.data import manifest, parallel
from inti_jax.data.codec import decode
from inti_jax.host import limits, paths


class _Record(NamedTuple):
    """A record as it was read, where it was, and the video that it should be."""

    where: str
    raw: bytes
    listed: manifest.Video


def differences(directory: Path, *, decode_all: bool = False, workers: int | None = None) -> Iterator[str]:
    """What differs in a prepared dataset, a line each, as it is found.

    Compared are the manifest with its own hashes; TFDS's metadata and every shard with their hashes; the
    number of records of each shard; and every record's facts and bytes, with `decode_all` also decoded.
    Raises UserError if the manifest itself cannot be relied on.
    """
    contents = manifest.read(directory)
    for name, sha256 in contents.files.items():
        yield from _file_differences(directory / name, sha256)
    try:
        info = tfds.builder_from_directory(directory).info
        # TFDS keeps a label a line, and no space around it.
        if info.features["label"].names != [label.strip() for label in contents.labels if label.strip()]:
            yield "dataset_info.json has other labels than the manifest"
        stored = {name: _shards_of(info, name) for name in contents.splits}
    except Exception as error:  # whatever TFDS raises for metadata that is not there, or not its own
        yield f"TFDS's metadata cannot be read, and so no record: {_line(error)}"
        return
    check = functools.partial(_record_differences, info.features, contents.labels, decode_all)
    for split_name, split in contents.splits.items():
        shards = split.shards or stored[split_name]
        counts = [shard.count for shard in shards]
        if sum(counts) != split.count:
            yield f"{split_name}: its shards have {sum(counts)} videos, not {split.count}"
        if counts != [shard.count for shard in stored[split_name]]:
            yield f"{split_name}: dataset_info.json has other numbers of records than the manifest"
        faults: list[str] = []
        with paths.plain(directory) as plain:
            records = _records(plain, split, shards, faults)
            checked = parallel.in_order(check, records, workers or limits.cores())
            for found in parallel.progress(checked, split.count, split_name):
                yield from found
                yield from _taken(faults)
        yield from _taken(faults)


def _shards_of(info: tfds.core.DatasetInfo, split_name: str) -> tuple[manifest.Shard, ...]:
    """The shards as TFDS knows them, without a hash. All that is read of its metadata about a split."""
    split = info.splits[split_name]
    names = (Path(path).name for path in split.filepaths)
    return tuple(
        manifest.Shard(name, length, "") for name, length in zip(names, split.shard_lengths, strict=True)
    )


def _records(
    directory: Path, split: manifest.Split, shards: tuple[manifest.Shard, ...], faults: list[str]
) -> Iterator[_Record]:
    """The records that can be read, one after the other; what is wrong with a shard goes to `faults`."""
    videos = iter(split.videos)
    for shard in shards:
        listed = list(itertools.islice(videos, shard.count))
        path = directory / shard.file
        faults += _file_differences(path, shard.sha256)
        if not path.exists():
            continue
        try:
            reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            count = reader.num_records()
        except RuntimeError as error:
            faults.append(f"{shard.file} cannot be read: {_line(error)}")
            continue
        if count != shard.count:
            faults.append(f"{shard.file} has {count} records, not {shard.count}")
        for index, video in enumerate(listed[:count]):
            where = f"{shard.file} record {index} ({video.id})"
            try:
                (raw,) = reader.read([index])
            except RuntimeError as error:
                faults.append(f"{where} cannot be read: {_line(error)}")
            else:
                yield _Record(where, raw, video)
        with contextlib.suppress(RuntimeError):  # again what opening the file should have said
            reader.close()


def _record_differences(
    features: Any, labels: tuple[str, ...], decode_all: bool, record: _Record
) -> list[str]:
    where, raw, listed = record
    try:
        example = features.deserialize_example_np(raw)
        found = manifest.Video(
            id=example["id"].decode(),
            label=labels[int(example["label"])],
            frames=int(example["frames"]),
            fps=float(example["fps"]),
            height=int(example["height"]),
            width=int(example["width"]),
            bytes=len(example["video"]),
            sha256=hashlib.sha256(example["video"]).hexdigest(),
            doubtful=listed.doubtful,  # not in the record
        )
    except Exception as error:  # whatever TFDS raises for bytes that are no example
        return [f"{where} is no example: {_line(error)}"]
    listed = dataclasses.replace(listed, fps=float(np.float32(listed.fps)))  # as records have it
    differing = [
        f"{where}: `{field}` is {getattr(found, field)}, not {value}"
        for field, value in vars(listed).items()
        if getattr(found, field) != value
    ]
    if decode_all:
        try:
            info = decode.validate(example["video"], most_doubtful=1.0)  # what was accepted is no difference
            if (info.frames, info.height, info.width) != (listed.frames, listed.height, listed.width):
                differing.append(f"{where} decodes to {info}")
        except decode.DecodeError as error:
            differing.append(f"{where}: {error}")
    return differing


def _file_differences(path: Path, sha256: str) -> Iterator[str]:
    """Nothing is said of the content where no hash is known."""
    if not path.exists():
        yield f"{path.name} is missing"
    elif sha256 and manifest.file_sha256(path) != sha256:
        yield f"{path.name} was changed: its hash is not the manifest's"


def _taken(faults: list[str]) -> list[str]:
    """What was in the list, which is empty then."""
    taken = list(faults)
    faults.clear()
    return taken


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
