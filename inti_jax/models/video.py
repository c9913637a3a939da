"""Define the video model: a CLIP image tower over frames, with modules added in and between its blocks."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from inti_jax.config import Model
from inti_jax.config.backbones import AUTO, Backbone, published
from inti_jax.config.resolution import Resolution
from inti_jax.distributed import sharding
from inti_jax.models import freezing, remat, tome
from inti_jax.models.adaptation import build_adapters, has_temporal_embedding
from inti_jax.models.adapters import BlockAdapters, TemporalEmbedding
from inti_jax.models.block import Block, BlockOutput
from inti_jax.models.compressors import Compressor, build_compressor
from inti_jax.models.dropout import Key, dropout, fold_in
from inti_jax.models.heads import LinearHead, TextHead
from inti_jax.models.scan import scan
from inti_jax.models.trace import Blend, BlockTrace, Trace
from inti_jax.models.vit import ImageTower

_DEEP = 24  # number of blocks from which on `scan` = "auto" loops


def normalize(
    pixels: UInt8[Array, "*b H W 3"], backbone: Backbone, dtype: DTypeLike
) -> Float[Array, "*b H W 3"]:
    """Normalise pixels with the backbone's mean and standard deviation.

    This runs on the device: transferring uint8 takes a quarter of the bytes of float32.
    """
    mean, std = np.asarray(backbone.mean, np.float32), np.asarray(backbone.std, np.float32)
    shape = (1,) * (pixels.ndim - 1) + (3,)
    scale, shift = (1 / (255 * std)).reshape(shape), (-mean / std).reshape(shape)
    return (pixels.astype(jnp.float32) * scale + shift).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive blocks that see the same T frames, and the compressor behind them, if any."""

    blocks: range  # their indices, from 0
    frames: int  # T
    compressor: Compressor | None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The blocks, numbered from 1, at which a model compresses."""

    compressing: Mapping[int, Compressor]  # the compressor behind the block, which makes the frames fewer
    merging: Mapping[int, int]  # number of patches of a frame that the block is asked to merge away


UNCOMPRESSED = Schedule({}, {})


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """The cost of one block for one view, with the modules added to it and the compressor behind it."""

    index: int  # from 1
    frames: int  # on entry
    tokens: int  # of each frame, on entry
    tokens_out: int  # of each frame, on exit
    macs: int  # multiply-accumulates of the block for all frames


class VideoModel(nnx.Module):
    """CLIP adapted to video: logits for clips of T frames, for any T that is a multiple of `ratio`."""

    def __init__(
        self,
        config: Model,
        classes: int,
        *,
        resolution: Resolution | None = None,
        num_frames: int = 8,
        backbone: Backbone | None = None,
        folded: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the model for `classes` classes.

        `resolution`, the pixels of a square's side or (height, width), defaults to the backbone's own;
        `backbone` to the named one as it was published. `num_frames` is the T of the temporal embedding,
        which is interpolated for others. `folded` is for the parameters that `fold.fold` returns. Raises
        ValueError where the head starts from class names and the backbone has no space shared with texts, or
        where no backbone is named.
        """
        if backbone is None and config.backbone == AUTO:
            raise ValueError("the file of weights says what the backbone is: give `backbone`")
        self.backbone = backbone or published(config.backbone)
        named = self.backbone.size
        size = dataclasses.replace(named, resolution=resolution or named.resolution)
        self.tower = ImageTower(
            size, numerics=self.backbone.numerics, attention=config.attention, dtype=dtype, rngs=rngs
        )
        self.compressors = nnx.List(
            [
                build_compressor(
                    config.compression,
                    size.width,
                    self.tower.grid,
                    prefix_tokens=self.tower.prefix_tokens,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in config.compression.compresses_after
            ]
        )
        self.adapters = nnx.List(
            [
                build_adapters(config, size, i, folded=folded, dtype=dtype, rngs=rngs)
                for i in range(size.layers)
            ]
        )
        if has_temporal_embedding(config):
            self.temporal = TemporalEmbedding(num_frames, size.width)
        self.head: LinearHead | TextHead
        if config.head.init == "random":
            self.head = LinearHead(size.width, classes, rngs=rngs)
        elif self.backbone.embed is None:
            raise ValueError("a head that starts from class names needs a backbone with a text space")
        else:
            projects = size.pooling != "attention"  # SigLIP's feature is in the text space
            self.head = TextHead(size.width, self.backbone.embed, classes, projects=projects, rngs=rngs)
        self.size = size
        self.after = config.compression.compresses_after
        # ST-Adapter averages the frames before the pooling's last step, the other methods after.
        self.mean_first = config.adaptation == "st_adapter"
        self.head_dropout = config.head.dropout
        adapters_dropout = config.zero_i2v.dropout if config.adaptation == "zero_i2v" else 0.0
        # Whether the forward pass in training needs a key.
        self.random = max(config.drop_path, config.head.dropout, adapters_dropout) > 0
        self.drop_rates = tuple(
            config.drop_path * i / max(size.layers - 1, 1) if i >= config.freeze_blocks else 0.0
            for i in range(size.layers)
        )
        # For each block, which of its parameters train; None where the method treats all blocks alike.
        self.block_trains = tuple(self._trains(config, i) for i in range(size.layers))
        # The policy for the backward pass, besides a block's input.
        self.remat_policy = remat.NOTHING if config.remat is True else remat.NAMED
        self.scans = config.scan == "on" or (config.scan == "auto" and size.layers >= _DEEP)
        self.dtype = dtype

    def __call__(self, video: UInt8[Array, "B T H W 3"], key: Key | None = None) -> Float[Array, "B K"]:
        """Compute the logits of videos; `key` turns on dropout and stochastic depth, for training."""
        return self.head(
            dropout(self.features(video, key), self.head_dropout, fold_in(key, len(self.adapters)))
        )

    def features(self, video: UInt8[Array, "B T H W 3"], key: Key | None = None) -> Float[Array, "B D"]:
        """Compute the feature of each video, in float32.

        It is the mean over the last stage's frames of the tower's feature: with CLIP, of the normalised class
        token; with SigLIP, of the attention pooling's output. With ST-Adapter on CLIP, it is the mean of the
        class tokens, normalised.
        """
        return self.pool(*self._last_tokens(video, key)[:2], video.shape[0])

    def trace(self, video: UInt8[Array, "B T H W 3"]) -> tuple[Float[Array, "B K"], Trace]:
        """Compute the logits of videos, and the weights by which tokens and frames were mixed."""
        x, sizes, steps = self._last_tokens(video, traced=True)
        logits = self.head(self.pool(x, sizes, video.shape[0]))
        return logits, Trace(steps, self.tower.pooling_weights(x, sizes))

    def blend_weights(self, video: UInt8[Array, "B T H W 3"]) -> tuple[Float[Array, "B S P g"], ...]:
        """Compute the weights by which each compressor blends the patches of its groups of g frames.

        Patches merge only in models without compressors, so P is their number in a frame.
        """
        _, _, steps = self._last_tokens(video, blended=True)
        weights = (step.weights for step in steps if isinstance(step, Blend))
        return tuple(each[:, :, self.tower.prefix_tokens :] for each in weights)

    def frame_features(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B S D"]:
        """Compute the features of the S frames of the last stage, which `features` averages, in float32.

        With ST-Adapter they are what it averages, on CLIP before the LayerNorm.
        """
        x, sizes, _ = self._last_tokens(video)
        return self.pool_frames(x, sizes, video.shape[0]).astype(jnp.float32)

    def _last_tokens(
        self,
        video: UInt8[Array, "B T H W 3"],
        key: Key | None = None,
        *,
        traced: bool = False,
        blended: bool = False,
    ) -> tuple[Float[Array, "BS N D"], Float[Array, "BS N"] | None, tuple[BlockTrace | Blend, ...]]:
        """Compute the tokens that leave the last block, and the patches that each stands for, if not one.

        With `traced`, the steps of the trace come with them, and with `blended` those of the compressors
        alone. Otherwise there are none.
        """
        return self.run_stages(
            self.stages(video.shape[1]), self.embed(video), None, key, traced=traced, blended=blended
        )

    def run_stages(
        self,
        stages: Sequence[Stage],
        x: Float[Array, "BT N D"],
        sizes: Float[Array, "BT N"] | None,
        key: Key | None = None,
        *,
        traced: bool = False,
        blended: bool = False,
    ) -> tuple[Float[Array, "BS M D"], Float[Array, "BS M"] | None, tuple[BlockTrace | Blend, ...]]:
        """Run consecutive `stages` on the tokens that enter the first of them; see `_last_tokens`."""
        steps: list[BlockTrace | Blend] = []
        for stage in stages:
            for run in self._runs(stage.blocks, apart=traced):
                if len(run) == 1:
                    x, sizes, block = self.block(
                        run[0], x, sizes, stage.frames, fold_in(key, run[0]), traced=traced
                    )
                    steps += [] if block is None else [block]
                else:
                    x = self._scan(run, x, sizes, stage.frames, key)
            if stage.compressor is not None:
                if traced or blended:
                    by_video = rearrange(x, "(b t) n d -> b t n d", t=stage.frames)
                    steps.append(Blend(stage.compressor.weights(by_video)))
                x = compress(stage.compressor, x, stage.frames)
        return x, sizes, tuple(steps)

    def embed(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "BT N D"]:
        """Compute the tokens that enter the first block."""
        batch, frames = video.shape[:2]
        offset = jnp.tile(self.temporal(frames), (batch, 1)) if hasattr(self, "temporal") else None

        def project(video: UInt8[Array, "B T H W 3"]) -> Float[Array, "BT P D"]:
            images = rearrange(video, "b t h w c -> (b t) h w c")
            return self.tower.project(normalize(images, self.backbone, self.dtype))

        # The backward pass normalises the pixels again: as floats in the layout of the convolution, they can
        # take as much memory on TPUs as a block keeps.
        return self.tower.place(jax.checkpoint(project)(video), offset)

    def pool(
        self, x: Float[Array, "BS N D"], sizes: Float[Array, "BS N"] | None, batch: int
    ) -> Float[Array, "{batch} D"]:
        """Compute the videos' features from what leaves the last block."""
        return self.average(self.pool_frames(x, sizes, batch))

    def average(self, frames: Float[Array, "B S D"]) -> Float[Array, "B D"]:
        """Compute the videos' features from what `pool_frames` gave."""
        mean = frames.mean(axis=1)
        return self.tower.finish(mean).astype(jnp.float32) if self.mean_first else mean

    def pool_frames(
        self, x: Float[Array, "BS N D"], sizes: Float[Array, "BS N"] | None, batch: int
    ) -> Float[Array, "{batch} S D"]:
        """Pool each frame's tokens; the last step is left out where the method averages before it."""
        reduced = rearrange(self.tower.reduce(x, sizes), "(b t) d -> b t d", b=batch)
        return reduced if self.mean_first else self.tower.finish(reduced).astype(jnp.float32)

    def block(
        self,
        index: int,
        x: Float[Array, "BT N D"],
        sizes: Float[Array, "BT N"] | None,
        frames: int,
        key: Key | None,
        *,
        traced: bool = False,
    ) -> BlockOutput:
        """Run block `index`, counted from 0, with the modules added to it; `frames` is its stage's T."""
        block, adapters = self.tower.blocks[index], self.adapters[index]

        def run(x: Array, sizes: Array | None, key: Key | None) -> BlockOutput:
            return block.run(
                sharding.over_batch(x),
                adapters,
                sizes=sizes,
                frames=frames,
                key=key,
                drop_rate=self.drop_rates[index],
                traced=traced,
            )

        return jax.checkpoint(run, policy=self.remat_policy)(x, sizes, key)

    def _trains(self, config: Model, index: int) -> tuple[bool, ...] | None:
        """Tell of each parameter of block `index` whether it trains; None where all blocks are alike.

        Blocks in one loop have to agree in that.
        """
        if not (config.freeze or config.freeze_blocks or config.unfreeze_last):
            return None
        paths = nnx.to_flat_state(nnx.state(self.tower.blocks[index], nnx.Param)).paths
        names = [".".join(map(str, path)) for path in paths]
        layers = len(self.tower.blocks)
        return tuple(freezing.trains(config, f"tower.blocks.{index}.{name}", layers) for name in names)

    def _runs(self, blocks: range, *, apart: bool) -> Iterator[Sequence[int]]:
        """Split `blocks` into runs for one loop each, whose blocks differ only in their parameters.

        Without `scans`, where blocks merge patches, and with `apart`, each block is a run of its own.
        """
        if apart or not self.scans:
            return ([i] for i in blocks)

        def structure(index: int) -> Any:
            adapters = self.adapters[index]
            graphdef = nnx.graphdef((self.tower.blocks[index], adapters))
            return graphdef, adapters.merging and index, self.block_trains[index]

        return (list(alike) for _, alike in itertools.groupby(blocks, structure))

    def _scan(
        self,
        run: Sequence[int],
        x: Float[Array, "BT N D"],
        sizes: Float[Array, "BT N"] | None,
        frames: int,
        key: Key | None,
    ) -> Float[Array, "BT N D"]:
        """Run the blocks `run`, which merge no patches, in one loop; the result is that of `block`."""
        modules = [(self.tower.blocks[i], self.adapters[i]) for i in run]
        rates = [self.drop_rates[i] for i in run]

        def body(
            modules: tuple[Block, BlockAdapters], x: Array, index: Array, rate: Array | None
        ) -> Float[Array, "BT N D"]:
            block, adapters = modules
            return block.run(
                sharding.over_batch(x),
                adapters,
                sizes=sizes,
                frames=frames,
                key=fold_in(key, index),
                drop_rate=0.0 if rate is None else rate,
            ).tokens

        return scan(
            modules,
            body,
            x,
            jnp.asarray(run),
            jnp.asarray(rates) if any(rates) else None,
            dtype=self.dtype,
            policy=self.remat_policy,
        )

    def macs(self, frames: int, *, folded: bool = False, schedule: Schedule | None = None) -> int:
        """Count the multiply-accumulates of the forward pass over one view of `frames` frames.

        Matrix products, convolutions and blends count. LayerNorm, softmax and activations do not, as in the
        tables of the published methods. With `folded`, the count is that after `fold.fold`. With `schedule`,
        it is as if the model compressed by that schedule.
        """
        blocks = self.block_costs(frames, folded=folded, schedule=schedule)
        inside = sum(block.macs for block in blocks) + self.pooling_macs(frames, schedule=schedule)
        return frames * self.tower.embed_macs() + inside + self.head.macs()

    def pooling_macs(self, frames: int, *, schedule: Schedule | None = None) -> int:
        """Count the multiply-accumulates of the pooling for one view of `frames` frames; see `macs`."""
        if schedule is None:
            schedule = self.schedule
        last = self.block_costs(frames, schedule=schedule)[-1]
        compressor = schedule.compressing.get(last.index)
        left = last.frames if compressor is None else last.frames // compressor.ratio
        return self.tower.pooling.macs(last.tokens_out, left)

    def block_costs(
        self, frames: int, *, folded: bool = False, schedule: Schedule | None = None
    ) -> list[BlockCost]:
        """Compute the cost of each block for one view of `frames` frames; see `macs`."""
        if schedule is None:
            schedule = self.schedule
        costs = []
        tokens = self.tower.tokens
        for index, (block, adapters) in enumerate(zip(self.tower.blocks, self.adapters, strict=True), 1):
            merging, compressor = schedule.merging.get(index, 0), schedule.compressing.get(index)
            left = tokens - tome.merged(tokens - self.tower.prefix_tokens, merging)
            macs = frames * block.macs(adapters, tokens, frames, merging=merging, folded=folded)
            if compressor is not None:
                macs += compressor.macs(frames)
            costs.append(BlockCost(index, frames, tokens, left, macs))
            frames = frames if compressor is None else frames // compressor.ratio
            tokens = left
        return costs

    @property
    def schedule(self) -> Schedule:
        """The blocks at which this model compresses."""
        merging = {i: adapters.merging for i, adapters in enumerate(self.adapters, 1) if adapters.merging}
        return Schedule(dict(zip(self.after, self.compressors, strict=True)), merging)

    def stages(self, frames: int) -> list[Stage]:
        """List the stages that a clip of `frames` frames goes through."""
        edges = (0, *self.after, len(self.tower.blocks))
        ratios = itertools.accumulate((one.ratio for one in self.compressors), operator.mul, initial=1)
        parts = zip(itertools.pairwise(edges), ratios, (*self.compressors, None), strict=True)
        return [
            Stage(range(start, end), frames // ratio, compressor) for (start, end), ratio, compressor in parts
        ]

    @property
    def ratio(self) -> int:
        """The number of frames of a clip that become one of the last stage: T has to be a multiple of it."""
        return math.prod(compressor.ratio for compressor in self.compressors)


def compress(
    compressor: Compressor, x: Float[Array, "BT N D"], frames: int
) -> Float[Array, "BT//{compressor.ratio} N D"]:
    """Make the frames of a batch fewer with `compressor`; each video has `frames` frames."""
    blended = compressor(rearrange(x, "(b t) n d -> b t n d", t=frames))
    return rearrange(blended, "b t n d -> (b t) n d")
