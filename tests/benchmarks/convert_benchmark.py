"""Time and peak memory of converting a full CLIP L/14: `python tests/benchmarks/convert_benchmark.py`.

Makes random weights of its shapes in a temporary directory (about 6 GB of disk), converts them from Hugging
Face's float32 and from OpenAI's naming in half precision, and back. Exits with 1 where one conversion
takes 30 s or more, or 2.5 times the file's size in memory.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from inti_jax.config.backbones import BACKBONES, Numerics
from inti_jax.models.clip import Architecture
from inti_jax.models.text import TextSize
from inti_jax.pretrained import clip_file
from inti_jax.pretrained.clip_file import Description
from inti_jax.pretrained.lazy_array import LazyArray
from inti_jax.runs import export

_SECONDS, _MEMORY = 30.0, 2.5

L14 = Architecture(
    BACKBONES["clip_vit_l14"],
    embed=768,
    text=TextSize(width=768, layers=12, heads=12, vocabulary=49408, context=77, end_token=49407),
    numerics=Numerics(),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        # Apart, since the peak of a process counts what the one that started it held.
        maker = multiprocessing.get_context("spawn").Process(target=_make_sources, args=(directory,))
        maker.start()
        maker.join()
        ours, back = directory / "l14.safetensors", directory / "back"
        openai = ("--activation", "quick_gelu")
        failed = [
            _measure("huggingface, float32", ours, directory / "hf", "--out", ours),
            _measure("openai .pt, float16", ours, directory / "half.pt", "--out", ours, *openai),
            _measure(
                "ours to huggingface", back / "model.safetensors", ours, "--to", "huggingface", "--out", back
            ),
        ]
    sys.exit(int(any(failed)))


def _make_sources(directory: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    arrays = {
        path: LazyArray(
            shape, np.dtype(np.float32), lambda shape=shape: rng.standard_normal(shape, np.float32)
        )
        for path, shape in clip_file.parameter_shapes(L14).items()
    }
    description = Description(L14, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    export.export(arrays, description, "huggingface", directory / "hf")
    export.export(arrays, description, "openai", directory / "full.pt")
    full = torch.load(directory / "full.pt", mmap=True, weights_only=True)
    torch.save({name: value.half() for name, value in full.items()}, directory / "half.pt")
    (directory / "full.pt").unlink()


def _measure(label: str, written: Path, *arguments: str | Path) -> bool:
    """Whether the command was too slow or too large; prints its figures."""
    start = time.monotonic()
    command = [sys.executable, "-m", "inti_jax.convert", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{label}: the conversion failed")
    size, peak = written.stat().st_size, usage.ru_maxrss * 1024
    figures = {
        "conversion": label,
        "seconds": round(seconds, 1),
        "file_gb": round(size / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "peak_per_file": round(peak / size, 2),
    }
    print(json.dumps(figures), flush=True)
    return seconds >= _SECONDS or peak >= _MEMORY * size


if __name__ == "__main__":
    main()
