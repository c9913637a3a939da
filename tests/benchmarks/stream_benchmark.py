"""Measure what a prediction in a stream costs beside a whole window, and an hour of video in constant memory.

    python -m tests.benchmarks.stream_benchmark parity [--video FILE]
    python -m tests.benchmarks.stream_benchmark hops
    python -m tests.benchmarks.stream_benchmark hour

`parity` compares the streamed logits of decoded H.264 with the model's on each window, for each method with
each compressor, with one and two layers that compress. `hops` times a window and a hop in turns, of random
weights. `hour` repeats the packets of a short clip to a video of the given minutes, and labels it over time:
resident memory by the minute of the video, the number of frames decoded, and the time as a multiple of
decoding alone.
"""

import argparse
import contextlib
import functools
import io
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from flax import nnx

from inti_jax.config.backbones import BACKBONES
from inti_jax.evaluation.classifier import VideoClassifier
from inti_jax.host import memory
from inti_jax.models import parameters, sliding
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from inti_jax.streaming import feed, pacing, sources, timeline
from inti_jax.streaming.engine import Stream
from tests.configs import record, tiny
from tests.data import clips
from tests.streaming import engine_test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("parity", "hops", "hour"))
    parser.add_argument("--backbone", default="clip_vit_b16")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["full", "st_adapter"])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument(
        "--video", type=Path, help="stream its first 40 frames for `parity`, not a rendered clip's"
    )
    arguments = parser.parse_args()
    if arguments.what == "parity":
        parity(arguments.video)
    elif arguments.what == "hops":
        hops(arguments.backbone, arguments.every, arguments.rounds, arguments.methods)
    else:
        hour(arguments.minutes)


def random_model(backbone: str, frames: int, resolution: int, **changes: object) -> VideoClassifier:
    """A model with random weights, folded as for inference."""
    settings = tiny(
        model__backbone=backbone,
        model__pretrained="none.safetensors",
        data__num_frames=frames,
        data__resolution=resolution,
        **changes,
    )
    run = record(settings)
    model = VideoModel(
        settings.model,
        10,
        resolution=resolution,
        num_frames=frames,
        backbone=run.backbone,
        folded=True,
        rngs=make_rngs(0),
    )
    return VideoClassifier(nnx.graphdef(model), parameters.flatten(nnx.state(model, nnx.Param)), run)


def parity(path: Path | None) -> None:
    encoded = clips.encode(clips.moving_square(40, 48, 40)) if path is None else path.read_bytes()
    video = clips.decode_all(encoded)[:40]
    print(f"{'method':<12}{'compressor':<12}{'one layer':>12}{'two layers':>12}")
    for method in (*engine_test.METHODS, "linear", "lora"):
        for kind in engine_test.COMPRESSIONS:
            cells = []
            for layers in (1, 2):
                model = engine_test.compressed(kind, layers, model__adaptation=method)
                stream = Stream(model, every=4)
                found = stream.push(video)
                windows = np.stack([video[each.start : each.end : stream.stride] for each in found])
                expected = model(windows)
                cells.append(np.abs(np.stack([each.logits for each in found]) - expected).max())
            print(f"{method:<12}{kind:<12}" + "".join(f"{cell:>12.1e}" for cell in cells), flush=True)


def hops(backbone: str, every: int, rounds: int, methods: list[str]) -> None:
    print(f"{backbone}, a prediction every {every} frames; medians of {rounds} rounds")
    print(f"{'':<11} {'':>3} {'window, s':>15} {'hop, s':>15} {'share of a window':>24}")
    print(
        f"{'method':<11} {'T':>3} {'clock':>7} {'CPU':>7} {'clock':>7} {'CPU':>7} {'MACs':>7} {'clock':>8} "
        f"{'CPU':>7}"
    )
    after = (BACKBONES[backbone].layers // 4,)
    compression = {"model__compression__kind": "inti", "model__compression__after": after}
    for method in methods:
        for frames in (8, 16, 32):
            model = random_model(backbone, frames, 224, model__adaptation=method, **compression)
            stream = Stream(model, every, stride=1)
            video = np.random.default_rng(0).integers(0, 256, (frames, 224, 224, 3), np.uint8)
            stream.push(video)
            model(video)
            window, hop = [], []
            for _ in range(rounds):
                window.append(seconds(model, video))
                hop.append(seconds(stream.push, video[:every]))
            plain = parameters.merge(model.graphdef, model.params)
            counted = sliding.hop_macs(plain, frames, every, folded=True) / plain.macs(frames, folded=True)
            whole, part = (np.median(each, axis=0) for each in (window, hop))
            figures = [*whole, *part, counted, *(part / whole)]
            print(f"{method:<11} {frames:3}", *(f"{figure:7.3f}" for figure in figures), flush=True)


def seconds(call, *arguments) -> tuple[float, float]:
    """Seconds by the clock, and of CPU time, which other jobs on the machine change less."""
    started = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def hour(minutes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "long.mp4")
        total = repeat(clips.encode(clips.moving_square(250, 240, 320)), path, minutes * 60 * 25)
        size = path.stat().st_size / 1e6
        print(f"{minutes} minutes of 320 x 240 at 25 frames a second, {total} frames, {size:.0f} MB")
        alone, _ = seconds(decode_alone, path)
        print(f"decoding alone: {alone:.1f} s")
        compression = {"model__compression__kind": "inti", "model__compression__after": (1,)}
        model = random_model("tiny", 8, 32, **compression)
        stream = Stream(model, 4, stride=1)
        stream.compile()
        decoded = 0

        @contextlib.contextmanager
        def counted():
            nonlocal decoded
            with sources.video(path) as frames:

                def each():
                    nonlocal decoded
                    for frame in frames:
                        decoded += 1
                        yield frame

                yield each()

        reader = feed.Feed(
            sources.Source(str(path), counted, may_stall=False),
            functools.partial(pacing.by_stride, stride=2, size=(32, 32)),
            16,
        )
        resident: list[float] = []
        started = time.perf_counter()
        curve = timeline.Curve()
        points = timeline.smoothed(timeline.points(feed.answers(stream, reader)), 2.0)
        labels = timeline.Labels(stream.labels, 0.0, multi_label=False)
        for _ in labels.segments(noting(curve.noting(points), resident), 0.0, lambda: reader.end):
            pass
        spent = time.perf_counter() - started
        print(f"resident MiB by minute: {' '.join(f'{mib:.0f}' for mib in resident)}")
        print(f"  after the first minute: from {min(resident[1:]):.1f} to {max(resident[1:]):.1f}")
        print(f"frames decoded: {decoded} of {total}")
        print(f"total: {spent:.1f} s, {spent / alone:.2f} x decoding alone")


def noting(points, resident):
    """Note resident memory in MiB at each whole minute of the video."""
    for point in points:
        if point.seconds // 60 >= len(resident):
            resident.append(memory.resident_bytes() / 2**20)
        yield point


def decode_alone(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def repeat(clip: bytes, path: Path, frames: int) -> int:
    """Write the packets of `clip` over and over, until there are `frames`; return their number."""
    written = 0
    with av.open(str(path), "w") as output:
        out = None
        while written < frames:
            with av.open(io.BytesIO(clip)) as source:
                stream = source.streams.video[0]
                if out is None:
                    out = output.add_stream_from_template(stream)
                length = int(stream.duration)
                shift = length * (written // 250)
                for packet in source.demux(stream):
                    if packet.size and written < frames:
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = out
                        output.mux(packet)
                        written += 1
    return written


if __name__ == "__main__":
    main()
