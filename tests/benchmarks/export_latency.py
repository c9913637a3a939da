"""Time exported models in ONNX Runtime, JAX and, for a CLIP's image tower, PyTorch, beside each other.

    python -m tests.benchmarks.export_latency [--rounds 9]

The tower is that of transformers' ViT-B/16 with random weights, converted; the videos are eight frames
through a ViT-B/16 without compression and with InTI after block 3. Each round times each program once, in
turn, so that whatever else the machine does falls on all of them. Prints the median of the rounds.
"""

import argparse
import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from inti_jax.config.backbones import CLIP_MEAN, CLIP_STD
from inti_jax.export import onnx_file, portable, stablehlo_file
from inti_jax.export.portable import Portable
from inti_jax.models import parameters
from inti_jax.models.rngs import make_rngs
from inti_jax.runs import state
from inti_jax.runs.trained import Trained
from tests.benchmarks import alternation
from tests.commands import convert
from tests.configs import record, tiny
from tests.export import examples

Program = Callable[[np.ndarray], np.ndarray]
_LIBRARIES = ("onnxruntime", "JAX", "PyTorch")


def main() -> None:
    """Print a row for each model and batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(f"{cores} cores, median of {rounds} rounds, milliseconds")
    names = "".join(f"{name:>13}" for name in (*_LIBRARIES, ".onnx MB", ".zip MB"))
    print(f"{'model':<14}{'batch':>6}{names}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source, model = _clip(directory)
        programs = _programs(directory, model) | {"PyTorch": functools.partial(_torch, source)}
        for batch in (1, 8):
            _row("image tower", programs, _pixels(model, batch), rounds, directory)
        for kind in ("none", "inti"):
            model = _video(kind)
            _row(f"video {kind}", _programs(directory, model), _pixels(model, 1), rounds, directory)


def _clip(directory: Path) -> tuple[transformers.CLIPVisionModelWithProjection, Portable]:
    config = transformers.CLIPVisionConfig(patch_size=16, num_hidden_layers=12)
    source = transformers.CLIPVisionModelWithProjection(config).eval()
    source.save_pretrained(directory / "hf")
    assert convert(directory / "hf", "--out", directory / "clip.safetensors") == 0
    return source, portable.read(directory / "clip.safetensors")


def _video(kind: str) -> Portable:
    settings = tiny(
        model__backbone="clip_vit_b16",
        model__compression__kind=kind,
        model__compression__after=() if kind == "none" else (3,),
        data__resolution=224,
    )
    run = record(settings, classes=400)
    params = parameters.parameter_shapes(state.build_model(run, make_rngs(0)))
    return portable.of_trained(Trained(run, params, "raw"))


def _programs(directory: Path, model: Portable) -> dict[str, Program]:
    stablehlo_file.write(directory / "m.zip", model)
    onnx_file.write(directory / "m.onnx", model)
    jax_program, _ = examples.module("run_stablehlo.py").load(directory / "m.zip")
    onnx_program, _ = examples.module("run_onnx.py").load(directory / "m.onnx")
    return {"onnxruntime": onnx_program, "JAX": jax_program}


def _pixels(model: Portable, batch: int) -> np.ndarray:
    shape = model.shape(batch, model.frames)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _torch(model: transformers.CLIPVisionModelWithProjection, images: np.ndarray) -> np.ndarray:
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    with torch.inference_mode():
        pixels = (torch.from_numpy(images).float() / 255 - mean) / std
        return model(pixel_values=pixels.permute(0, 3, 1, 2)).image_embeds.numpy()


def _row(name: str, programs: dict[str, Program], pixels: np.ndarray, rounds: int, directory: Path) -> None:
    outputs = [program(pixels) for program in programs.values()]  # compiles
    for output in outputs[1:]:
        assert np.abs(output - outputs[0]).max() <= 1e-4 * np.abs(outputs[0]).max()
    ready = {library: functools.partial(run, pixels) for library, run in programs.items()}
    taken = alternation.seconds(ready, rounds)
    cells = [f"{1e3 * statistics.median(taken[each]):.0f}" if each in taken else "" for each in _LIBRARIES]
    cells += [f"{(directory / file).stat().st_size / 1e6:.0f}" for file in ("m.onnx", "m.zip")]
    print(f"{name:<14}{len(pixels):>6}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
