"""Time a CLIP tower on videos on this CPU, in JAX and in PyTorch, beside each other.

    python -m tests.benchmarks.cpu_benchmark [--backbones clip_vit_b32] [--frames 8,16] [--videos 1,4]

Each program classifies clips in float32: the class embeddings of all frames, their mean, and a linear layer
of 400 classes. PyTorch runs transformers' tower with `scaled_dot_product_attention`, as it is and compiled by
`torch.compile`. The backward pass computes the gradients of all parameters. Each round runs each program
once, in turn, so that whatever else the machine does falls on all of them. Prints the medians in
milliseconds, and JAX without compression as a share of the faster PyTorch.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from inti_jax import config
from inti_jax.config.backbones import CLIP_MEAN, CLIP_STD, published
from inti_jax.cost.plan import record_of
from inti_jax.distributed import sharding
from inti_jax.models.rngs import make_rngs
from inti_jax.runs import state

CLASSES = 400
# Takes the clips [B, T, H, W, 3] and returns once all is computed.
Program = Callable[[np.ndarray], Any]


def main() -> None:
    """Print a row for each backbone, number of frames and of videos, and pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="clip_vit_b32,clip_vit_b16,clip_vit_l14")
    parser.add_argument("--frames", default="8,16")
    parser.add_argument("--videos", default="1,4", help="of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(f"{cores} cores, JAX {jax.__version__}, PyTorch {torch.__version__}, median of {arguments.rounds}")
    columns = ("eager", "compiled", "JAX", "JAX, InTI", "share")
    print(
        f"{'backbone':<14}{'frames':>7}{'videos':>7} {'pass':<9}" + "".join(f"{one:>11}" for one in columns)
    )
    for backbone in arguments.backbones.split(","):
        for backward in (False, True):
            programs = _torch_programs(backbone, backward) | _jax_programs(backbone, backward)
            for frames, videos in itertools.product(
                map(int, arguments.frames.split(",")), map(int, arguments.videos.split(","))
            ):
                _row(backbone, frames, videos, backward, programs, arguments.rounds)


def _row(
    backbone: str,
    frames: int,
    videos: int,
    backward: bool,
    programs: dict[str, Callable[[int], Program]],
    rounds: int,
) -> None:
    side = published(backbone).size.resolution
    clips = np.random.default_rng(0).integers(0, 256, (videos, frames, side, side, 3), np.uint8)
    made = {name: make(frames) for name, make in programs.items()}
    for run in made.values():
        run(clips)  # compiles
    taken: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, run in made.items():
            start = time.perf_counter()
            run(clips)
            taken[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    share = medians["JAX"] / min(medians["eager"], medians["compiled"])
    cells = "".join(f"{medians[name]:>11.0f}" for name in made)
    done = "both" if backward else "forward"
    print(f"{backbone:<14}{frames:>7}{videos:>7} {done:<9}{cells}{share:>11.2f}", flush=True)


def _jax_programs(backbone: str, backward: bool) -> dict[str, Callable[[int], Program]]:
    def make(compression: str, frames: int) -> Program:
        settings = config.load_config(
            f"k400_vit_b16:compression={compression}",
            [
                f"--config.model.backbone={backbone}",
                "--config.model.adaptation=full",
                f"--config.model.compression.after={_quarter(backbone, compression)}",
                f"--config.data.num_frames={frames}",
                f"--config.data.resolution={published(backbone).size.resolution}",
                "--config.train.dtype=float32",
            ],
        )
        model = state.build_model(record_of(settings, classes=CLASSES), make_rngs(0))
        graphdef, params = nnx.split(model)
        options = sharding.compiler_options(sharding.make_mesh(settings.mesh))

        def loss(params: nnx.State, clips: jax.Array) -> jax.Array:
            return jnp.square(nnx.merge(graphdef, params)(clips)).mean()

        run = jax.grad(loss) if backward else lambda params, clips: nnx.merge(graphdef, params)(clips)
        program = jax.jit(run, compiler_options=options)
        return lambda clips: jax.block_until_ready(program(params, clips))

    return {
        "JAX": lambda frames: make("none", frames),
        "JAX, InTI": lambda frames: make("inti", frames),
    }


def _quarter(backbone: str, compression: str) -> str:
    return "()" if compression == "none" else f"({published(backbone).size.layers // 4},)"


class _Classifier(torch.nn.Module):
    """Classify clips by the mean of their frames' class embeddings, as the JAX model without compression."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        size = published(backbone).size
        self.tower = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                hidden_size=size.width,
                intermediate_size=4 * size.width,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                patch_size=size.patch,
                image_size=size.resolution,
                projection_dim=size.width,
                attn_implementation="sdpa",
            )
        ).eval()
        self.head = torch.nn.Linear(size.width, CLASSES)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN))
        self.register_buffer("std", torch.tensor(CLIP_STD))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        frames = (clips.flatten(0, 1).float() / 255 - self.mean) / self.std
        embeddings = self.tower(pixel_values=frames.permute(0, 3, 1, 2)).image_embeds
        return self.head(embeddings.unflatten(0, clips.shape[:2]).mean(1))


def _torch_programs(backbone: str, backward: bool) -> dict[str, Callable[[int], Program]]:
    model = _Classifier(backbone)

    def forward(module: Callable[[torch.Tensor], torch.Tensor], clips: np.ndarray) -> None:
        with torch.inference_mode():
            module(torch.from_numpy(clips))

    def both(module: Callable[[torch.Tensor], torch.Tensor], clips: np.ndarray) -> None:
        module(torch.from_numpy(clips)).square().mean().backward()
        model.zero_grad()

    run = both if backward else forward
    compiled = torch.compile(model)
    return {
        "eager": lambda frames: lambda clips: run(model, clips),
        "compiled": lambda frames: lambda clips: run(compiled, clips),
    }


if __name__ == "__main__":
    main()
