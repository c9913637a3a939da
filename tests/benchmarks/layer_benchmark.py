"""Time the InTI layer beside one block of the transformer, forward, and forward and backward.

    python -m tests.benchmarks.layer_benchmark [--config k400_vit_b16:compression=inti] [--rounds 15]

Both take the tokens of one video, in float32 and with random weights. The backward pass computes the
gradients of the tokens and of the part's own parameters. Each round runs each program once, in turn. Prints
the medians, and the layer's time as a share of the block's: the median of the rounds' shares, with their
least and most.
"""

import argparse
import math
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from inti_jax import config
from inti_jax.cost.plan import record_of
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel, compress
from inti_jax.runs import state
from tests.benchmarks import alternation

Program = Callable[[], Any]


def main() -> None:
    """Print a row for each pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="k400_vit_b16:compression=inti")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    settings = config.load_config(arguments.config, ["--config.train.dtype=float32"])
    model = state.build_model(record_of(settings, classes=400), make_rngs(0))
    frames = settings.data.num_frames
    shape = (frames, model.tower.prefix_tokens + math.prod(model.tower.grid), model.size.width)
    tokens = jax.random.normal(jax.random.key(0), shape)
    print(f"{len(os.sched_getaffinity(0))} cores, tokens {shape}, median of {arguments.rounds} rounds")
    print(f"{'pass':<24}{'block, ms':>12}{'layer, ms':>12}{'share':>8}{'least':>8}{'most':>8}")
    for name, make in (("forward", _forward), ("forward and backward", _backward)):
        programs = {run.__name__: make(model, run, tokens, frames) for run in (_block, _layer)}
        for program in programs.values():
            program()  # compiles
        block, layer = alternation.seconds(programs, arguments.rounds).values()
        shares = [one / other for one, other in zip(layer, block, strict=True)]
        cells = [f"{1e3 * statistics.median(taken):>12.1f}" for taken in (block, layer)]
        cells += [f"{choose(shares):>8.3f}" for choose in (statistics.median, min, max)]
        print(f"{name:<24}" + "".join(cells), flush=True)


def _block(model: VideoModel, tokens: jax.Array, frames: int) -> jax.Array:
    return model.block(0, tokens, None, frames, None)[0]


def _layer(model: VideoModel, tokens: jax.Array, frames: int) -> jax.Array:
    return compress(model.compressors[0], tokens, frames)


def _forward(model: VideoModel, run: Callable[..., jax.Array], tokens: jax.Array, frames: int) -> Program:
    graphdef, params = nnx.split(model)
    program = jax.jit(lambda params, tokens: run(nnx.merge(graphdef, params), tokens, frames))
    return lambda: jax.block_until_ready(program(params, tokens))


def _backward(model: VideoModel, run: Callable[..., jax.Array], tokens: jax.Array, frames: int) -> Program:
    # The gradients of all other parameters are zeros, and writing them takes longer than the layer.
    part = ("tower", "blocks", 0) if run is _block else ("compressors", 0)
    graphdef, own, rest = nnx.split(model, lambda path, _: path[: len(part)] == part, ...)
    assert jax.tree.leaves(own)

    def loss(own: nnx.State, tokens: jax.Array) -> jax.Array:
        return (run(nnx.merge(graphdef, own, rest), tokens, frames) ** 2).mean()

    program = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(program(own, tokens))


if __name__ == "__main__":
    main()
