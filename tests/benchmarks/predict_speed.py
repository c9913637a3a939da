"""Time `predict` as a user waits for it, from the start of the process to the labels of one clip and of many.

    python -m tests.benchmarks.predict_speed [--videos 1000] [--rounds 5]

The model is a ViT-B/32 of random weights with InTI after block 6, on eight frames of 224 pixels. The videos
are H.264 of 320 x 240 pixels and 250 frames. One clip is labelled with an empty cache of compiled programs,
and then with the cache that this left. Each round starts every command once, in turn. Then come the long list
and its two parts alone, in one process: decoding and cropping without a model, and the model on the same
batches without decoding, in float32 and bfloat16. Prints medians.
"""

import argparse
import dataclasses
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from inti_jax.data import pipeline
from inti_jax.data.dataset import FileDataset
from inti_jax.distributed import sharding
from inti_jax.evaluation import evaluate
from inti_jax.runs import trained, trained_file
from tests.configs import record, tiny
from tests.data import clips

_COLD = "one clip, nothing cached"
_WARM = "one clip, programs cached"
_DIFFERENT = 10  # videos; the others are links to them
_BATCHES = 10  # of the model alone


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = _model("float32")
        trained_file.write(directory / "model.safetensors", model.record, model.params, whole=True)
        videos = _videos(directory / "videos", arguments.videos)
        print(f"{len(os.sched_getaffinity(0))} cores, medians of {arguments.rounds} rounds")
        _commands(directory, videos, arguments.rounds)
        _parts(model, videos)


def _model(dtype: str) -> trained.Trained:
    settings = tiny(
        model__backbone="clip_vit_b32",
        model__compression__kind="inti",
        model__compression__after=(6,),
        data__resolution=224,
        train__dtype=dtype,
    )
    run = record(settings, classes=400)
    return trained.start(run, sharding.one_device_mesh())


def _videos(directory: Path, count: int) -> list[Path]:
    directory.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (_DIFFERENT, 12, 16, 3), np.uint8)
    for number, pixels in enumerate(noise):
        still = pixels.repeat(20, 0).repeat(20, 1)
        frames = np.stack([np.roll(still, 2 * shift, axis=1) for shift in range(250)])
        (directory / f"{number:04}.mp4").write_bytes(clips.encode(frames))
    for number in range(_DIFFERENT, count):
        os.link(directory / f"{number % _DIFFERENT:04}.mp4", directory / f"{number:04}.mp4")
    return sorted(directory.iterdir())[:count]


def _commands(directory: Path, videos: list[Path], rounds: int) -> None:
    cache, model = directory / "cache", directory / "model.safetensors"
    predict = ["inti_jax.predict", "--checkpoint", model, "--topk", "1", "--out", directory / "labels.csv"]
    cases: dict[str, list[object]] = {
        "--help": ["inti_jax.predict", "--help"],
        _COLD: [*predict, videos[0]],
        _WARM: [*predict, videos[0]],
    }
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache)}

    def seconds(words: list[object]) -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", *map(str, words)], env=environment, check=True, capture_output=True
        )
        return time.perf_counter() - start

    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, words in cases.items():
            if name == _COLD:
                shutil.rmtree(cache, ignore_errors=True)
            taken[name].append(seconds(words))
    for name, found in taken.items():
        print(f"{name:<40}{statistics.median(found):8.1f} s", flush=True)
    whole = seconds([*predict, *videos])
    rest = (whole - statistics.median(taken[_WARM])) / (len(videos) - 1)
    print(f"{f'{len(videos)} clips, programs cached':<40}{whole:8.1f} s; each after the first:")
    print(f"{'  predict':<40}{1e3 * rest:8.0f} ms", flush=True)


def _parts(model: trained.Trained, videos: list[Path]) -> None:
    data = dataclasses.replace(model.record.config.data, workers=0)
    settings = model.record.config.eval
    mesh = sharding.one_device_mesh()
    source = FileDataset(videos, functools.partial(pipeline.view_indices, cfg=data, eval_cfg=settings))
    start = time.perf_counter()
    with pipeline.eval_batches(source, data, settings) as batches:
        first = next(batches)
        for _ in batches:
            pass
    each = (time.perf_counter() - start) / len(videos)
    print(f"{'  decoding alone':<40}{1e3 * each:8.0f} ms", flush=True)
    batch = {key: rows for key, rows in first.items() if key != "found"}
    batch = sharding.place_batch(batch, mesh)
    for dtype in ("float32", "bfloat16"):
        found = _model(dtype)
        graphdef, params = found.for_inference()
        forward = evaluate.make_forward(graphdef, mesh)
        jax.block_until_ready(forward(params, batch))
        start = time.perf_counter()
        for _ in range(_BATCHES):
            jax.block_until_ready(forward(params, batch))
        each = (time.perf_counter() - start) / (_BATCHES * settings.batch)
        print(f"{f'  the model alone, {dtype}':<40}{1e3 * each:8.0f} ms", flush=True)


if __name__ == "__main__":
    main()
