"""Add an adaptation method's modules to CLIP's blocks, and run the blocks with them.

A method chooses modules for named places in the block, so methods, temporal modules and compressors combine.
The tower stays CLIP's own. The added modules are beside it, in one `BlockAdapters` for each block.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config import TEMPORAL_OF, Model
from inti_jax.config.backbones import BackboneSize
from inti_jax.distributed import sharding
from inti_jax.models import tome
from inti_jax.models.adapters import Adapter, LinearAdapter, LowRank, TemporalConv, shift_heads
from inti_jax.models.dropout import Key, Rate, drop_path, fold_in
from inti_jax.models.remat import keep
from inti_jax.models.vit import Block, attend

Tokens = Float[Array, "BT N D"]
Sizes = Float[Array, "BT N"]  # patches that each token stands for

# Modules that fold.py folds into the matrices next to them; a folded model does not have them.
_FOLDING = (LinearAdapter, LowRank)


def temporal_modules(config: Model) -> set[str]:
    """Collect the temporal modules: the method's own and `model.temporal`."""
    return {TEMPORAL_OF.get(config.adaptation, "none"), config.temporal} - {"none"}


def has_temporal_embedding(config: Model) -> bool:
    """Tell whether the model adds a temporal embedding to its tokens.

    AIM and ZeroI2V have one. Without it, attention over time does not see the order of frames.
    """
    return config.adaptation == "zero_i2v" or "attention" in temporal_modules(config)


class BlockMacs(NamedTuple):
    """Multiply-accumulates of a block for one frame, by kind."""

    matrices: int  # the tower's matrices with activations
    products: int  # activations with each other: the two products of attention
    additions: int  # the added modules
    merging: int  # the similarities by which ToMe chooses patches


class BlockAdapters(nnx.Module):
    """The modules added to one block: a module or None for each place.

    Calling it runs the block with them.
    """

    # The places, in the order of the forward pass. A `lora_*` module is beside the matrix of that name.
    before_attn: TemporalConv | None
    temporal_in: Adapter | None
    temporal_out: Adapter | None
    attn_in: LinearAdapter | None
    lora_query: LowRank | None
    lora_key: LowRank | None
    lora_value: LowRank | None
    lora_out: LowRank | None
    attn_out: Adapter | LinearAdapter | None
    before_mlp: TemporalConv | None
    mlp_in: LinearAdapter | None
    lora_fc: LowRank | None
    lora_proj: LowRank | None
    mlp_out: LinearAdapter | None
    mlp_beside: Adapter | None

    def __init__(
        self,
        config: Model,
        size: BackboneSize,
        block: int,
        *,
        folded: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Build the modules of block `block`, counted from 0.

        With `folded`, the modules that `fold.fold` folds into the tower are left out.
        """
        modules = _modules(config, size, dtype=dtype, rngs=rngs)
        if folded:
            modules = {place: module for place, module in modules.items() if not isinstance(module, _FOLDING)}
        for place in PLACES:
            setattr(self, place, modules.get(place))
        self.shifts = config.zero_i2v.shifts if "shift" in temporal_modules(config) else ()
        self.beside_scale = config.aim.scale
        # Stochastic depth drops the added branches and, where the block itself trains, its own too.
        self.drops_block = config.adaptation == "full"
        self.merging = tome.merging(config, size.layers)[block]
        self.merges_alike = config.compression.matching == "clip" or (
            config.compression.matching == "auto" and bool(temporal_modules(config))
        )

    def __call__(
        self, block: Block, x: Tokens, sizes: Sizes | None, frames: int, key: Key | None, drop_rate: Rate
    ) -> tuple[Float[Array, "BT M D"], Float[Array, "BT M"] | None]:
        """Run videos of `frames` frames through `block` with the added modules.

        `sizes` are the patches that each token stands for, None as long as that is one. Returns the tokens
        and their sizes. In training, `key` is given: trained branches are dropped at `drop_rate`, and
        ZeroI2V's adapters apply their dropout.
        """
        x = sharding.over_batch(x)
        keys = [fold_in(key, i) for i in range(8)]
        branch_rate = drop_rate if self.drops_block else 0.0
        if self.before_attn is not None:
            x = keep(self.before_attn(x, frames))
        if self.temporal_out is not None:
            added = self._over_time(block, self.temporal_out, x, frames)
            x = keep(x + drop_path(added, frames, drop_rate, keys[0]))

        q, k, v = self._project(block, _through(self.attn_in, block.ln_1(x), keys[1]))
        metric = k
        if self.shifts:
            k, v = (self._shift(part, frames) for part in (k, v))
        attended = _through(self.attn_out, self._attend(block, q, k, v, sizes), keys[2])
        x = keep(x + drop_path(attended, frames, branch_rate, keys[3]))

        if self.merging:
            x, sizes = tome.merge(x, sizes, metric, self.merging, frames if self.merges_alike else 1)
        if self.before_mlp is not None:
            x = keep(self.before_mlp(x, frames))
        y = block.ln_2(x)
        hidden = _through(self.mlp_out, self._mlp(block, _through(self.mlp_in, y, keys[4])), keys[5])
        x = x + drop_path(hidden, frames, branch_rate, keys[7])
        if self.mlp_beside is not None:
            x = x + drop_path(self.beside_scale * self.mlp_beside(y), frames, drop_rate, keys[6])
        return x, sizes

    def _over_time(self, block: Block, out: Adapter, x: Tokens, frames: int) -> Tokens:
        """Attend along the frames at each position, with the block's own attention, then apply `out`."""
        y = rearrange(block.ln_1(x), "(b t) n d -> (b n) t d", t=frames)
        y = self._attend(block, *self._project(block, _through(self.temporal_in, y, None)), None)
        return rearrange(out(y), "(b n) t d -> (b t) n d", n=x.shape[1])

    def _project(self, block: Block, x: Tokens) -> tuple[Array, Array, Array]:
        """Compute queries, keys and values, `[B, N, A, Dh]` each, with LoRA's updates."""
        projected = block.attn.project(x)
        updates = (self.lora_query, self.lora_key, self.lora_value)
        return tuple(
            keep(part if update is None else part + update(x).reshape(part.shape))
            for part, update in zip(projected, updates, strict=True)
        )  # type: ignore[return-value]

    def _attend(self, block: Block, q: Array, k: Array, v: Array, sizes: Sizes | None) -> Tokens:
        """Attend, then apply the output matrix with LoRA's update.

        With `sizes`, attention to a token is in proportion to the patches it stands for (ToMe).
        """
        bias = None if sizes is None else jnp.log(sizes).astype(q.dtype)[:, None, None, :]
        mixed = attend(q, k, v, bias=bias)
        out = block.attn.out(mixed)
        if self.lora_out is not None:
            out = out + self.lora_out(rearrange(mixed, "b n a h -> b n (a h)"))
        return keep(out)

    def _mlp(self, block: Block, x: Tokens) -> Tokens:
        """Run the block's MLP with LoRA's updates."""
        hidden = block.mlp.fc(x)
        if self.lora_fc is not None:
            hidden = hidden + self.lora_fc(x)
        hidden = block.mlp.activate(keep(hidden))
        out = block.mlp.proj(hidden)
        return keep(out if self.lora_proj is None else out + self.lora_proj(hidden))

    def _shift(self, x: Float[Array, "BT N A Dh"], frames: int) -> Float[Array, "BT N A Dh"]:
        """Take some heads from other frames of the same video; see `shift_heads`."""
        by_video = rearrange(x, "(b t) n a h -> b t n a h", t=frames)
        return rearrange(shift_heads(by_video, self.shifts), "b t n a h -> (b t) n a h")

    def macs(self, block: Block, tokens: int, frames: int, *, merging: int, folded: bool) -> int:
        """Count the multiply-accumulates of `block` with the added modules, for one frame.

        The frame is one of `frames` and has `tokens` tokens. The block counts as if it were asked to merge
        `merging` patches. With `folded`, modules that fold into the block's matrices cost nothing.
        """
        return sum(self.macs_by_kind(block, tokens, frames, merging=merging, folded=folded))

    def macs_by_kind(
        self, block: Block, tokens: int, frames: int, *, merging: int, folded: bool
    ) -> BlockMacs:
        """Count what `macs` counts, split by kind."""
        left = tokens - tome.merged(tokens, merging)
        matrices = block.attention_macs(tokens) + block.mlp_macs(left)
        products = block.attention_product_macs(tokens)
        if self.temporal_out is not None:
            matrices += block.attention_macs(frames) * tokens // frames
            products += block.attention_product_macs(frames) * tokens // frames
        modules = {place: getattr(self, place) for place in PLACES}
        additions = sum(
            module.macs(left if place in _BEHIND_MERGE else tokens)
            for place, module in modules.items()
            if module is not None and not (folded and isinstance(module, _FOLDING))
        )
        choice = tome.macs(tokens, block.attn.head_size) if merging else 0
        return BlockMacs(matrices - products, products, additions, choice)


PLACES = tuple(BlockAdapters.__annotations__)
_BEHIND_MERGE = PLACES[PLACES.index("before_mlp") :]


def _modules(
    config: Model, size: BackboneSize, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> dict[str, Adapter | LinearAdapter | LowRank | TemporalConv]:
    """Build the modules of the config's method and temporal module, by place."""
    width = size.width
    modules: dict[str, Adapter | LinearAdapter | LowRank | TemporalConv] = {}

    def adapter(skip: bool) -> Adapter:
        return Adapter(width, int(config.aim.bottleneck * width), skip=skip, dtype=dtype, rngs=rngs)

    def conv() -> TemporalConv:
        return TemporalConv(width, config.st_adapter.width, dtype=dtype, rngs=rngs)

    temporal = temporal_modules(config)
    if "attention" in temporal:
        if config.aim.temporal_adapters == 2:
            modules["temporal_in"] = adapter(skip=True)
        modules["temporal_out"] = adapter(skip=False)
    if "conv" in temporal:
        modules |= {f"before_{part}": conv() for part in config.st_adapter.before}
    match config.adaptation:
        case "aim":
            modules |= {"attn_out": adapter(skip=True), "mlp_beside": adapter(skip=False)}
        case "zero_i2v":
            settings = config.zero_i2v
            for place in ("attn_in", "attn_out", "mlp_in", "mlp_out"):
                modules[place] = LinearAdapter(
                    width,
                    int(settings.bottleneck * width),
                    scale=settings.scale,
                    dropout=settings.dropout,
                    dtype=dtype,
                    rngs=rngs,
                )
        case "lora":
            for target in config.lora.targets:
                modules[f"lora_{target}"] = LowRank(
                    4 * width if target == "proj" else width,
                    4 * width if target == "fc" else width,
                    rank=config.lora.rank,
                    alpha=config.lora.alpha,
                    dtype=dtype,
                    rngs=rngs,
                )
    return modules


def _through(module: Adapter | LinearAdapter | None, x: Tokens, key: Key | None) -> Tokens:
    """Apply `module`; where there is none, return `x`."""
    if module is None:
        return x
    return module(x, key) if isinstance(module, LinearAdapter) else module(x)
