"""Resident memory while clips are loaded: `python -m tests.benchmarks.memory_benchmark`.

Five thousand clips as in decode_benchmark, of the prepared videos and of the originals by turns, in threads
and then in worker processes. After the last, memory should be within 10 % of what it was after the
thousandth.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from inti_jax.data import pipeline
from inti_jax.host import memory
from tests.benchmarks import decode_benchmark

_BATCH = 20
_WARM = 1000  # clips, after which memory should stay


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory_benchmark")
    parser.add_argument("--videos", type=Path, default=decode_benchmark.VIDEOS)
    parser.add_argument("--clips", type=int, default=5 * _WARM)
    arguments = parser.parse_args()
    originals = decode_benchmark.read_videos(arguments.videos)
    source = decode_benchmark.Repeated(
        [decode_benchmark.encode_anew(video, gop=24) for video in originals] + originals
    )
    print("clips   threads, MB   workers, MB")
    resident = {workers: _measure(source, workers, arguments.clips) for workers in (0, 2)}
    for clips in resident[0]:
        print(f"{clips:5}   {resident[0][clips] / 1e6:11.0f}   {resident[2][clips] / 1e6:11.0f}")
    grown = {workers: found[arguments.clips] / found[_WARM] - 1 for workers, found in resident.items()}
    print("grown by", ", ".join(f"{share:.1%}" for share in grown.values()))
    sys.exit(max(grown.values()) > 0.1)


def _measure(source: decode_benchmark.Repeated, workers: int, clips: int) -> dict[int, int]:
    """Bytes by number of clips loaded."""
    cfg = dataclasses.replace(decode_benchmark.CFG, workers=workers, threads=2)
    found: dict[int, int] = {}
    steps = clips // _BATCH
    # More than are asked for: at the end of all, workers would have ended before the last batch is seen.
    with pipeline.train_batches(source, cfg, seed=0, global_batch=_BATCH, num_steps=2 * steps) as batches:
        for step in range(1, steps + 1):
            next(batches)
            if step * _BATCH % _WARM == 0:
                found[step * _BATCH] = memory.resident_bytes()
    return found


if __name__ == "__main__":
    main()
