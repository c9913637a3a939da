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

from inti_jax.data import manifest, parallel, remote
from inti_jax.data.codec import decode
from inti_jax.host import limits, paths


class _Record(NamedTuple):
    """A record as it was read, with its place and the video that the manifest lists for it."""

    where: str
    raw: bytes
    listed: manifest.Video


def differences(directory: Path, *, decode_all: bool = False, workers: int | None = None) -> Iterator[str]:
    """Yield a line for each difference between a prepared dataset and its manifest.

    It checks the manifest's own hashes, and those of TFDS's metadata and of every shard. It compares the
    number of records of each shard, and every record's facts and bytes. With `decode_all`, it also decodes
    every record. Raises UserError if the manifest itself cannot be relied on.
    """
    contents = manifest.read(directory)
    for name, sha256 in contents.files.items():
        yield from _file_differences(directory / name, sha256)
    try:
        info = tfds.builder_from_directory(directory).info
        # TFDS stores one label a line, without the space around it.
        feature = info.features["labels"].feature if contents.multi_label else info.features["label"]
        if feature.names != [label.strip() for label in contents.labels if label.strip()]:
            yield "dataset_info.json has other labels than the manifest"
        stored = {name: _shards_of(info, name) for name in contents.splits}
    except Exception as error:  # whatever TFDS raises for missing or foreign metadata
        yield f"TFDS's metadata cannot be read, so no record was checked: {_line(error)}"
        return
    check = functools.partial(_record_differences, info.features, contents, decode_all)
    for split_name, split in contents.splits.items():
        shards = split.shards or stored[split_name]
        counts = [shard.count for shard in shards]
        if sum(counts) != split.count:
            yield f"{split_name}: its shards have {sum(counts)} videos, not {split.count}"
        if counts != [shard.count for shard in stored[split_name]]:
            yield f"{split_name}: dataset_info.json has other numbers of records than the manifest"
        faults: list[str] = []
        with paths.plain(directory) as plain:
            records = _records(directory, plain, split, shards, faults)
            checked = parallel.in_order(check, records, workers or limits.cores())
            for found in parallel.progress(checked, split.count, split_name):
                yield from found
                yield from _taken(faults)
        yield from _taken(faults)


def _shards_of(info: tfds.core.DatasetInfo, split_name: str) -> tuple[manifest.Shard, ...]:
    """List a split's shards from TFDS's metadata, without hashes.

    Nothing else of the metadata about a split is read.
    """
    split = info.splits[split_name]
    names = (Path(path).name for path in split.filepaths)
    return tuple(
        manifest.Shard(name, length, "") for name, length in zip(names, split.shard_lengths, strict=True)
    )


def _records(
    directory: Path,
    plain: Path,
    split: manifest.Split,
    shards: tuple[manifest.Shard, ...],
    faults: list[str],
) -> Iterator[_Record]:
    """Yield the readable records in order, and append the faults of shards and records to `faults`.

    `plain` is a path to `directory` for ArrayRecord. Where the directory stands for one in a bucket, its
    shards are fetched one at a time.
    """
    videos = iter(split.videos)
    for shard in shards:
        listed = list(itertools.islice(videos, shard.count))
        with remote.fetched(directory / shard.file) as path:
            faults += _file_differences(path, shard.sha256)
            if path.exists():
                yield from _records_of(shard, str(plain / shard.file), listed, faults)


def _records_of(
    shard: manifest.Shard, path: str, listed: list[manifest.Video], faults: list[str]
) -> Iterator[_Record]:
    """Yield the readable records of a shard, and append its faults to `faults`."""
    try:
        reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
        count = reader.num_records()
    except RuntimeError as error:
        faults.append(f"{shard.file} cannot be read: {_line(error)}")
        return
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
    with contextlib.suppress(RuntimeError):  # repeats an error that opening the file should have raised
        reader.close()


def _record_differences(
    features: Any, contents: manifest.Manifest, decode_all: bool, record: _Record
) -> list[str]:
    where, raw, listed = record
    try:
        example = features.deserialize_example_np(raw)
        labels = example["labels"] if contents.multi_label else [example["label"]]
        found = manifest.Video(
            id=example["id"].decode(),
            label=manifest.SEPARATOR.join(contents.labels[int(label)] for label in labels),
            frames=int(example["frames"]),
            fps=float(example["fps"]),
            height=int(example["height"]),
            width=int(example["width"]),
            bytes=len(example["video"]),
            sha256=hashlib.sha256(example["video"]).hexdigest(),
            doubtful=listed.doubtful,  # records do not have it
        )
    except Exception as error:  # whatever TFDS raises for bytes that are not an example
        return [f"{where} is not a TFDS example: {_line(error)}"]
    listed = dataclasses.replace(listed, fps=float(np.float32(listed.fps)))  # records have float32
    differing = [
        f"{where}: `{field}` is {getattr(found, field)}, not {value}"
        for field, value in vars(listed).items()
        if getattr(found, field) != value
    ]
    if decode_all:
        try:
            info = decode.validate(example["video"], most_doubtful=1.0)  # accepted when it was prepared
            if (info.frames, info.height, info.width) != (listed.frames, listed.height, listed.width):
                differing.append(f"{where} decodes to {info}")
        except decode.DecodeError as error:
            differing.append(f"{where}: {error}")
    return differing


def _file_differences(path: Path, sha256: str) -> Iterator[str]:
    """Yield a line if the file is missing or differs from its hash; an empty hash is not compared."""
    if not path.exists():
        yield f"{path.name} is missing"
    elif sha256 and manifest.file_sha256(path) != sha256:
        yield f"{path.name} was changed: its hash is not the manifest's"


def _taken(faults: list[str]) -> list[str]:
    """Return the items of the list and empty it."""
    taken = list(faults)
    faults.clear()
    return taken


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
