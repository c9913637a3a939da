"""What preparing holds in memory: `python -m tests.benchmarks.prepare_memory --files 20000`.

Prepares that many small videos in a process of its own, and prints its time and the most memory it had.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.data import clips

_PROGRAM = """
import pathlib, resource, sys
from inti_jax.data.builders import folder, base
source, data_dir = map(pathlib.Path, sys.argv[1:])
labels, splits, *_ = folder.scan(source, val_share=0)
builder = folder.Folder(data_dir=data_dir, name="folder", labels=labels, splits=splits)
builder.build(base.Options(workers=2))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prepare_memory")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--padding", type=int, default=0, help="bytes to add to each file of about 2 kB")
    arguments = parser.parse_args()
    started = time.perf_counter()
    mebibytes = peak_memory(arguments.files, arguments.padding)
    result = {"files": arguments.files, "padding": arguments.padding, "peak_mib": round(mebibytes, 1)}
    print(json.dumps(result | {"seconds": round(time.perf_counter() - started, 1)}))


def peak_memory(files: int, padding: int = 0) -> float:
    """The most memory (MiB) that preparing `files` videos took, each with `padding` idle bytes."""
    with tempfile.TemporaryDirectory() as place:
        write_videos(Path(place, "source"), files, padding)
        command = [sys.executable, "-c", _PROGRAM, f"{place}/source", f"{place}/data"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        return int(done.stdout) / 1024


def write_videos(source: Path, files: int, padding: int) -> None:
    """Videos of a few frames in two classes; every one has an id of its own."""
    contents = [clips.encode(clips.moving_square(3 + index, 32, 32)) for index in range(8)]
    # A box that MP4's readers skip.
    free = (padding + 8).to_bytes(4, "big") + b"free" + bytes(padding) if padding else b""
    for label in "ab":
        (source / label).mkdir(parents=True)
    for index in range(files):
        (source / "ab"[index % 2] / f"{index}.mp4").write_bytes(contents[index % 8] + free)


if __name__ == "__main__":
    main()
