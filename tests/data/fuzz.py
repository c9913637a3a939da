"""Damaged and odd video files by the thousand: `python -m tests.data.fuzz --files 1000`.

Each file goes through `validate`, as in preparing, and through the loading of training batches, as if it
had been damaged since. Whatever comes out must be frames or a DecodeError of one line, soon, in bounded
memory; a crash or a hang is the caller's to see, who should run this as a process with a time limit.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from inti_jax import config
from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.dataset import Example
from inti_jax.host import memory
from tests.data import clips

_FRAMES = 40
_CFG = config.Data(name="x", data_dir="x", num_frames=4, stride=8, resolution=32, workers=0)
_BATCH = 10


@functools.cache
def _whole() -> dict[str, bytes]:
    frames = clips.moving_square(_FRAMES)
    return {
        "h264_mp4": clips.encode(frames),
        "h264_faststart": clips.encode(frames, muxer={"movflags": "faststart"}),
        "h264_fragmented": clips.encode(frames, muxer={"movflags": "frag_keyframe+empty_moov"}),
        "h264_mkv": clips.encode(frames, container="matroska"),
        "h264_ts": clips.encode(frames, container="mpegts"),
        "h264_sound": clips.encode(frames, audio=True),
        "mpeg4_avi": clips.encode(frames, codec="mpeg4", container="avi"),
        "vp9_webm": clips.encode(frames, codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
    }


def _flipped(rng: np.random.Generator) -> bytes:
    video = np.frombuffer(_one_of(rng), np.uint8).copy()
    places = rng.integers(len(video), size=rng.integers(1, 60))
    video[places] = rng.integers(256, size=len(places))
    return video.tobytes()


def _in_the_index(rng: np.random.Generator) -> bytes:
    """Bytes changed in an MP4 file's header, where the sizes and offsets are."""
    video = np.frombuffer(_whole()["h264_faststart"], np.uint8).copy()
    places = rng.integers(1500, size=rng.integers(1, 20))
    video[places] = rng.integers(256, size=len(places))
    return video.tobytes()


def _truncated(rng: np.random.Generator) -> bytes:
    video = _one_of(rng)
    return video[: rng.integers(1, len(video))]


def _hole(rng: np.random.Generator) -> bytes:
    video = bytearray(_one_of(rng))
    start, size = rng.integers(len(video)), rng.integers(1, 5000)
    video[start : start + size] = bytes(len(video[start : start + size]))
    return bytes(video)


def _spliced(rng: np.random.Generator) -> bytes:
    first, second = _one_of(rng), _one_of(rng)
    return first[: rng.integers(len(first))] + second[rng.integers(len(second)) :]


def _no_video(rng: np.random.Generator) -> bytes:
    return (rng.bytes(rng.integers(1, 9000)), b"path,label\na.mp4,run\n" * 40, b"PK\x03\x04" + bytes(500))[
        rng.integers(3)
    ]


def _variable_rate(rng: np.random.Generator) -> bytes:
    return clips.encode(clips.moving_square(20), times=np.cumsum(rng.integers(1, 9, 20)).tolist())


def _empty_packets(rng: np.random.Generator) -> bytes:
    times = np.cumsum(rng.integers(1, 9, 20)).tolist()
    return clips.encode(clips.moving_square(20), codec="mpeg4", container="avi", b_frames=0, times=times)


def _mirrored(rng: np.random.Generator) -> bytes:
    return clips.with_matrix(_whole()["h264_mp4"], *[(-1, 0, 0, 1), (0, 1, 1, 0)][rng.integers(2)])


def _several_streams(rng: np.random.Generator) -> bytes:
    sizes = ((32, 48), (48, 64), (64, 96))
    streams = [(clips.moving_square(20, *size), av.stream.Disposition.default) for size in sizes]
    return clips.several_streams([streams[place] for place in rng.permutation(3)], container="matroska")


def _odd_size(rng: np.random.Generator) -> bytes:
    height, width = (2 * rng.integers(8, 40, 2) + 1).tolist()
    return clips.encode(
        clips.moving_square(5, height, width + 20), codec="mjpeg", container="avi", b_frames=0
    )


_BAD = {
    "flipped": _flipped,
    "in_the_index": _in_the_index,
    "truncated": _truncated,
    "hole": _hole,
    "spliced": _spliced,
    "no_video": _no_video,
    "empty": lambda rng: b"",
    "no_frames": lambda rng: clips.no_frames(),
    "sound_only": lambda rng: clips.sound_only(),
}
# These cannot but be loaded.
GOOD = {
    "one_frame": lambda rng: clips.encode(clips.moving_square(1)),
    "variable_rate": _variable_rate,
    "odd_size": _odd_size,
    "turned": lambda rng: clips.turned(_whole()["h264_mp4"], int(rng.integers(1, 4))),
    "mirrored": _mirrored,
    "empty_packets": _empty_packets,
    "several_streams": _several_streams,
    "other_container": lambda rng: _whole()["h264_mkv"],  # nothing goes by a file's extension
}
KINDS = _BAD | GOOD
# These cannot but be rejected.
REJECTED = ("no_video", "empty", "no_frames", "sound_only")


def _one_of(rng: np.random.Generator) -> bytes:
    videos = list(_whole().values())
    return videos[rng.integers(len(videos))]


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` files, each with its kind; the kinds take turns."""
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        yield kind, KINDS[kind](np.random.default_rng((seed, number)))


class _Fuzzed:
    """The files by index, with the number of frames they have, or had before they were damaged."""

    labels = ("a",)

    def __init__(self, videos: list[bytes], frames: list[int]):
        self._videos, self._frames = videos, frames

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Example:
        return Example(f"f{index}", 0, self._videos[index], self._frames[index], 25.0, 48, 64)


def run(count: int, seed: int) -> dict[str, Any]:
    """Puts the files through both, ten at a time, and says what came of them."""
    reasons: collections.Counter[str] = collections.Counter()
    outcome = {kind: {"files": 0, "valid": 0, "loaded": 0} for kind in KINDS}
    slowest = 0.0
    stream = files(count, seed)
    resident = []
    while chunk := list(itertools.islice(stream, _BATCH)):
        frames = []
        for kind, video in chunk:
            outcome[kind]["files"] += 1
            started = time.perf_counter()
            try:
                frames.append(decode.validate(video).frames)
                outcome[kind]["valid"] += 1
            except decode.DecodeError as error:
                reasons[str(error)] += 1
                frames.append(_FRAMES)
            slowest = max(slowest, time.perf_counter() - started)
        source = _Fuzzed([video for _, video in chunk], frames)
        with pipeline.train_batches(source, _CFG, seed=seed, global_batch=len(chunk), num_steps=1) as batches:
            (batch,) = batches
        for index, loaded in zip(batch["index"], batch["mask"], strict=True):
            outcome[chunk[index][0]]["loaded"] += int(loaded)
        resident.append(memory.resident_bytes())
    return {
        "files": sum(kind["files"] for kind in outcome.values()),
        "rejected": sum(reasons.values()),
        "reasons": dict(reasons.most_common()),
        "kinds": outcome,
        "slowest_seconds": slowest,
        "resident_bytes": {"half_way": resident[len(resident) // 2], "end": resident[-1]},
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.data.fuzz")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(json.dumps(run(arguments.files, arguments.seed), indent=2))


if __name__ == "__main__":
    main()
