"""Time a CLIP tower on videos in JAX and in PyTorch beside each other, on a CPU or a GPU.

    python -m tests.benchmarks.torch_benchmark [--backbones clip_vit_b32] [--frames 8,16] [--videos 1,4]
    python -m tests.benchmarks.torch_benchmark --device cuda --dtype bfloat16 --videos 8

Each program classifies clips: the class embeddings of all frames, their mean, and a linear layer of 400
classes. PyTorch runs transformers' tower with `scaled_dot_product_attention`, as it is and compiled by
`torch.compile`; in bfloat16 under autocast. The backward pass computes the gradients of all parameters. Each
round runs each program once, in turn, so that whatever else the machine does falls on all of them. "products"
are the tower's linear layers alone in PyTorch, as bare matrix products. Prints the medians in milliseconds,
and two shares of the faster PyTorch: JAX without compression, and as "floor" the products, which a program
with products of the same speed cannot go below. On a chip whose peak is known, it prints JAX's utilisation.
"""

import argparse
import functools
import itertools
import os
import statistics
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
from inti_jax.host.chips import chip_of
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from inti_jax.runs import state
from tests.benchmarks import alternation

CLASSES = 400
PROGRAMS = ("eager", "compiled", "products", "JAX", "JAX, InTI")
# Takes clips [B, T, H, W, 3] and returns once all is computed.
Program = Callable[[np.ndarray], Any]


def main() -> None:
    """Print a row for each backbone, pass, number of frames and number of videos."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="clip_vit_b32,clip_vit_b16,clip_vit_l14")
    parser.add_argument("--frames", default="8,16")
    parser.add_argument("--videos", default="1,4", help="of a batch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", arguments.device)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    device = f"{cores} cores" if arguments.device == "cpu" else jax.devices()[0].device_kind
    print(f"{device}, {arguments.dtype}, JAX {jax.__version__}, PyTorch {torch.__version__}")
    print(f"milliseconds, median of {arguments.rounds} rounds")
    columns = "".join(f"{name:>11}" for name in (*PROGRAMS, "share", "floor", "MFU"))
    print(f"{'backbone':<14}{'pass':<9}{'frames':>7}{'videos':>7}{columns}")
    for backbone in arguments.backbones.split(","):
        eager = _Classifier(backbone).to(arguments.device)
        modules = {"eager": eager, "compiled": torch.compile(eager)}
        frames, videos = ([int(n) for n in text.split(",")] for text in (arguments.frames, arguments.videos))
        for backward, count, batch in itertools.product((False, True), frames, videos):
            programs = {
                name: functools.partial(_run_torch, module, arguments.dtype, backward)
                for name, module in modules.items()
            }
            programs["products"] = _products(eager, count * batch, arguments.dtype, backward)
            models = {
                "JAX": _model(backbone, "none", count, arguments.dtype),
                "JAX, InTI": _model(backbone, "inti", count, arguments.dtype),
            }
            programs |= {name: _jax_program(model, backward) for name, model in models.items()}
            medians = _medians(programs, _clips(backbone, count, batch), arguments.rounds)
            faster = min(medians["eager"], medians["compiled"])
            share, floor = medians["JAX"] / faster, medians["products"] / faster
            flops = (6 if backward else 2) * batch * models["JAX"].macs(count)
            chip = chip_of(jax.devices()[0])
            mfu = "" if chip is None else f"{flops / chip.flops / (medians['JAX'] / 1e3):.3f}"
            cells = "".join(f"{medians[name]:>11.0f}" for name in PROGRAMS)
            done = "both" if backward else "forward"
            print(
                f"{backbone:<14}{done:<9}{count:>7}{batch:>7}{cells}{share:>11.2f}{floor:>11.2f}{mfu:>11}",
                flush=True,
            )


def _clips(backbone: str, frames: int, videos: int) -> np.ndarray:
    side = published(backbone).size.resolution
    return np.random.default_rng(0).integers(0, 256, (videos, frames, side, side, 3), np.uint8)


def _medians(programs: dict[str, Program], clips: np.ndarray, rounds: int) -> dict[str, float]:
    ready = {name: functools.partial(run, clips) for name, run in programs.items()}
    for run in ready.values():
        run()  # compiles
    taken = alternation.seconds(ready, rounds)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def _model(backbone: str, compression: str, frames: int, dtype: str) -> VideoModel:
    size = published(backbone).size
    after = (size.layers // 4,) if compression == "inti" else ()
    overrides = {
        "model.backbone": backbone,
        "model.adaptation": "full",
        "model.compression.after": after,
        "data.num_frames": frames,
        "data.resolution": size.resolution,
        "train.dtype": dtype,
    }
    settings = config.load_config(
        f"k400_vit_b16:compression={compression}",
        [f"--config.{key}={value}" for key, value in overrides.items()],
    )
    return state.build_model(record_of(settings, classes=CLASSES), make_rngs(0))


def _jax_program(model: VideoModel, backward: bool) -> Program:
    graphdef, params = nnx.split(model)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])

    def forward(params: nnx.State, clips: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(clips)

    def loss(params: nnx.State, clips: jax.Array) -> jax.Array:
        return jnp.square(forward(params, clips)).mean()

    run = sharding.using(mesh, jax.grad(loss) if backward else forward)
    program = jax.jit(run, compiler_options=sharding.compiler_options(mesh))
    return lambda clips: jax.block_until_ready(program(params, clips))


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


def _run_torch(module: torch.nn.Module, dtype: str, backward: bool, clips: np.ndarray) -> None:
    device = next(module.parameters()).device.type
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    with cast, torch.set_grad_enabled(backward):
        logits = module(torch.from_numpy(clips).to(device))
    if backward:
        logits.float().square().mean().backward()
        module.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def _products(module: _Classifier, images: int, dtype: str, backward: bool) -> Program:
    """Multiply by the kernels of the tower's linear layers, and for the backward pass by each twice more."""
    tokens = images * module.tower.vision_model.embeddings.num_positions
    layers = [each for each in module.tower.vision_model.modules() if isinstance(each, torch.nn.Linear)]
    kernels = [layer.weight.detach().to(getattr(torch, dtype)) for layer in layers]
    widths = {width for kernel in kernels for width in kernel.shape}
    values = {width: torch.randn(tokens, width).to(kernels[0]) for width in widths}

    def run(_: np.ndarray) -> None:
        for kernel in kernels:
            leaving, entering = kernel.shape
            torch.mm(values[entering], kernel.T)
            if backward:
                torch.mm(values[leaving], kernel)
                torch.mm(values[leaving].T, values[entering])
        if kernels[0].is_cuda:
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
