"""Clips a second of decoding and augmenting: `python -m tests.benchmarks.decode_benchmark`.

A clip is 8 frames at stride 16 from anywhere in a video, decoded and cut to a random-resized crop of 224.
Ours against decord2 and torchcodec with the same augmentation, on real videos (H.264 and MPEG-4, 5 to 10
seconds of 240 to 512 lines) as they are, and prepared: encoded anew with the shorter side at most 256. Then
the cost of prepared files by their keyframe interval, and the input pipeline on one core and on two.

Compared in turns on one core, by CPU time, so that other load matters little; medians over rounds. The
pipeline is timed by the clock and needs a machine with nothing else to do. decord2 and torchcodec are left
out where they are not installed; they are no requirements of the project.
"""

import argparse
import dataclasses
import functools
import importlib.util
import io
import multiprocessing
import os
import statistics
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from inti_jax import config
from inti_jax.data import pipeline, sampling
from inti_jax.data.augmentation import augment
from inti_jax.data.codec import decode
from inti_jax.data.dataset import Example

VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
CFG = config.Data(
    name="x", data_dir="x", num_frames=8, stride=16, resolution=224, crop_scale=(0.08, 1.0), workers=0
)
_CLIPS = 4  # of each video in a round
_BATCH, _STEPS = 16, 30  # of the pipeline, timed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode_benchmark")
    parser.add_argument("--videos", type=Path, default=VIDEOS, help="a folder of .mp4 and .avi files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gop", type=int, default=24, help="keyframe interval of the prepared files")
    parser.add_argument("--gops", type=int, nargs="*", default=[], help="intervals to compare")
    parser.add_argument("--pipeline", action="store_true", help="time the pipeline on one core and on two")
    arguments = parser.parse_args()
    originals = read_videos(arguments.videos)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    prepared = [encode_anew(video, arguments.gop) for video in originals]
    _compare({"originals": originals, "prepared": prepared}, arguments.rounds)
    if arguments.gops:
        _compare_intervals(originals, arguments.gops, arguments.rounds)
    if arguments.pipeline:
        _scale(prepared, sorted(cores), arguments.rounds)


def read_videos(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(directory.iterdir()) if path.suffix in (".avi", ".mp4")]


def encode_anew(video: bytes, gop: int) -> bytes:
    """The video as H.264 of quick decoding: its B-frames can be passed over, a keyframe is never far."""
    options = {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": "23",
        "bf": "3",
        "g": str(gop),
        "threads": "1",
    }
    options["x264-params"] = "b-pyramid=0"
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as target:
        stream = source.streams.video[0]
        size = stream.codec_context.height, stream.codec_context.width
        height, width = (2 * round(length * min(1, 256 / min(size)) / 2) for length in size)
        rate = Fraction(stream.average_rate or 25)
        output = target.add_stream("libx264", rate=rate, options=options)
        output.height, output.width, output.pix_fmt = height, width, "yuv420p"
        for number, frame in enumerate(source.decode(stream)):
            picture = frame.reformat(
                width=width, height=height, format="yuv420p", interpolation="BICUBIC", threads=1
            )
            picture.pts, picture.time_base, picture.pict_type = number, 1 / rate, 0
            target.mux(output.encode(picture))
        target.mux(output.encode(None))
    return file.getvalue()


def _decoders() -> dict[str, decode.Decoder]:
    decoders: dict[str, decode.Decoder] = {"ours": decode.decode_frames}
    if importlib.util.find_spec("decord"):
        import decord

        decoders["decord2"] = lambda video, indices, total=None: (
            decord.VideoReader(io.BytesIO(video), num_threads=1).get_batch(indices).asnumpy()
        )
    if importlib.util.find_spec("torchcodec"):
        import torch
        from torchcodec.decoders import VideoDecoder

        torch.set_num_threads(1)
        make = functools.partial(VideoDecoder, dimension_order="NHWC", num_ffmpeg_threads=1)
        decoders["torchcodec"] = lambda video, indices, total=None: (
            make(video).get_frames_at(indices.tolist()).data.numpy()
        )
        decoders["torchcodec, approximate"] = lambda video, indices, total=None: (
            make(video, seek_mode="approximate").get_frames_at(indices.tolist()).data.numpy()
        )
    return decoders


def _compare(sets: dict[str, list[bytes]], rounds: int) -> None:
    totals = {name: [decode.validate(video).frames for video in videos] for name, videos in sets.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for name, videos in sets.items():
            for decoder_name, decoder in _decoders().items():
                cost = _seconds_a_clip(videos, totals[name], decoder, number, augmented=True)
                seconds.setdefault((name, decoder_name), []).append(cost)
    rates = {key: 1 / statistics.median(costs) for key, costs in seconds.items()}
    print(f"{'files':<10} {'decoder':<24} {'clips/s':>8}   ours is")
    for (name, decoder_name), rate in rates.items():
        print(f"{name:<10} {decoder_name:<24} {rate:8.1f}   {rates[name, 'ours'] / rate:.2f} x")
    if ("originals", "decord2") in rates:
        ratio = rates["prepared", "ours"] / rates["originals", "decord2"]
        print(f"ours on prepared files / decord2 on originals: {ratio:.2f}")


def _compare_intervals(originals: list[bytes], gops: list[int], rounds: int) -> None:
    sets = {gop: [encode_anew(video, gop) for video in originals] for gop in gops}
    totals = [decode.validate(video).frames for video in originals]
    seconds: dict[int, list[float]] = {gop: [] for gop in gops}
    for number in range(rounds):
        for gop, videos in sets.items():
            seconds[gop].append(
                _seconds_a_clip(videos, totals, decode.decode_frames, number, augmented=False)
            )
    print("\nGOP   size / originals   decoding, ms a clip")
    for gop, costs in seconds.items():
        share = sum(map(len, sets[gop])) / sum(map(len, originals))
        print(f"{gop:3}   {share:16.2f}   {1000 * statistics.median(costs):19.1f}")


def _seconds_a_clip(
    videos: list[bytes], totals: list[int], decoder: decode.Decoder, seed: int, *, augmented: bool
) -> float:
    """CPU seconds; the mean over videos of clips that `seed` chooses."""
    started = time.process_time()
    for place, (video, total) in enumerate(zip(videos, totals, strict=True)):
        for clip in range(_CLIPS):
            rng = np.random.default_rng((seed, place, clip))
            indices = sampling.clip_indices(total, num_frames=8, sampling="dense", stride=16, rng=rng)
            frames = decoder(video, indices, total)
            if augmented:
                augment.train_clip(frames, rng, CFG)
    return (time.process_time() - started) / (len(videos) * _CLIPS)


class Repeated:
    """The videos over and over, in memory."""

    labels = ("a",)

    def __init__(self, videos: list[bytes]):
        self._videos = videos
        self._totals = [decode.validate(video).frames for video in videos]

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Example:
        place = index % len(self._videos)
        return Example(str(index), 0, self._videos[place], self._totals[place], 25.0, 256, 256)


def _scale(videos: list[bytes], cores: list[int], rounds: int) -> None:
    source = Repeated(videos)
    settings = {
        "1 core, 1 thread": (cores[:1], {"threads": 1}),
        "2 cores, 2 threads": (cores[:2], {"threads": 2}),
        "2 cores, 2 workers": (cores[:2], {"threads": 1, "workers": 2}),
    }
    apart = "2 cores, 2 runs of 1 thread"  # which share nothing: what the machine itself gives
    rates: dict[str, list[float]] = {name: [] for name in (*settings, apart)}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for _ in range(rounds):
            for name, (used, changes) in settings.items():
                rates[name].append(_clips_a_second(source, used, changes))
            rates[apart].append(
                sum(pool.starmap(_clips_a_second, [(source, [core], {"threads": 1}) for core in cores[:2]]))
            )
    print("\npipeline                      clips/s   of one core")
    one = statistics.median(rates["1 core, 1 thread"])
    for name, found in rates.items():
        print(f"{name:<27} {statistics.median(found):9.1f}   {statistics.median(found) / one:.2f} x")


def _clips_a_second(source: Repeated, cores: list[int], changes: dict[str, int]) -> float:
    os.sched_setaffinity(0, set(cores))  # of this thread and what it starts
    cfg = dataclasses.replace(CFG, **changes)
    with pipeline.train_batches(source, cfg, seed=0, global_batch=_BATCH, num_steps=1000) as batches:
        for _ in range(6):  # until all memory was used once, and what was loaded ahead is gone
            next(batches)
        started = time.perf_counter()
        for _ in range(_STEPS):
            next(batches)
        return _STEPS * _BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
