"""Define the transformer block: its one forward pass, with or without added modules, and its cost.

Images, texts and videos all go through `Block.run`. Blocks normalise before attention and MLP. The activation
and the LayerNorm epsilon are those of the checkpoint; the defaults are OpenAI's, QuickGELU and 1e-5. Tokens
are `[B, N, D]`. For videos these are frames, `[B*T, N, D]` with t fastest.

The backward pass computes LayerNorm, activation and attention weights again from the outputs of the matrix
products. What is kept is then mostly the inputs of matrices that train, and a frozen tower has none.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config.backbones import OPENAI, Numerics
from inti_jax.config.schema import AttentionKernel
from inti_jax.models import fused_attention, tome, trace
from inti_jax.models.adapters import (
    FOLDING,
    NOTHING,
    PLACES,
    Adapter,
    BlockAdapters,
    LinearAdapter,
    shift_heads,
)
from inti_jax.models.dropout import Key, Rate, drop_path, fold_in
from inti_jax.models.remat import keep
from inti_jax.models.trace import BlockTrace

Tokens = Float[Array, "B N D"]
Packed = Float[Array, "B N 3 A Dh"]  # queries, keys and values
Sizes = Float[Array, "B N"]  # patches that each token stands for

_PROJECTION_INIT = nnx.initializers.lecun_normal()
_BEHIND_MERGE = PLACES[PLACES.index("before_mlp") :]


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Compute x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _swiglu(x: Float[Array, "*B G"]) -> Float[Array, "*B G//2"]:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with torch's default epsilon; its variance takes two passes in float32 for any `dtype`."""

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        """Normalise the last dimension; the backward pass computes this again."""
        return jax.checkpoint(super().__call__)(x)

    def __init__(self, width: int, *, eps: float = OPENAI.eps, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(width, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention over the tokens of one frame; one packed kernel gives q, k and v.

    With `causal`, a token sees itself and the tokens before it. `kernel` is `model.attention` of the config.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        kernel: AttentionKernel = "auto",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        per_head = width // heads
        self.qkv = nnx.LinearGeneral(
            width, (3, heads, per_head), kernel_init=_PROJECTION_INIT, dtype=dtype, rngs=rngs
        )
        self.out = nnx.LinearGeneral(
            (heads, per_head), width, axis=(-2, -1), kernel_init=_PROJECTION_INIT, dtype=dtype, rngs=rngs
        )
        self.causal = causal
        self.kernel = kernel
        self.head_size = per_head

    @jax.named_scope("qkv")
    def project(self, x: Tokens, added: BlockAdapters) -> Packed:
        """Compute queries, keys and values, packed in this order, with LoRA's updates."""
        if self._fuses(x):
            packed = _by_matrix(self.qkv, x).reshape(*x.shape[:2], *self.qkv.out_features)
        else:
            packed = self.qkv(x)
        updates = (added.lora_query, added.lora_key, added.lora_value)
        if updates == (None, None, None):
            return packed
        parts = zip(jnp.unstack(packed, axis=-3), updates, strict=True)
        return jnp.stack(
            [part if update is None else part + update(x).reshape(part.shape) for part, update in parts],
            axis=-3,
        )

    def mix_packed(self, qkv: Packed, added: BlockAdapters, sizes: Sizes | None = None) -> Tokens:
        """Do what `mix` does with queries, keys and values as `project` gives them.

        In training on TPUs this is one kernel, where it suits.
        """
        if sizes is None and self._fuses(qkv):
            # Values of more dimensions in between would get a layout that has to be copied for the kernel.
            flat = keep(rearrange(qkv, "b n p a h -> b n (p a h)"))
            with jax.named_scope("attention"):
                mixed = keep(fused_attention.attend(flat, self.head_size))
            with jax.named_scope("out"):
                return self._updated(_by_matrix(self.out, mixed), mixed, added)
        q, k, v = (keep(part) for part in jnp.unstack(qkv, axis=-3))
        return self.mix(q, k, v, added, sizes)

    def _fuses(self, x: Tokens | Packed) -> bool:
        """Tell whether these tokens, or what `project` makes of them, attend in the kernel for TPUs."""
        _, heads, size = self.qkv.out_features
        wanted = self.kernel == "auto" and not self.causal and fused_attention.available()
        return wanted and fused_attention.suits(x.shape[1], heads, size, x.dtype)

    def mix(
        self,
        q: Float[Array, "B M A Dh"],
        k: Float[Array, "B N A Dh"],
        v: Float[Array, "B N A Dh"],
        added: BlockAdapters,
        sizes: Sizes | None = None,
    ) -> Float[Array, "B M D"]:
        """Attend, with the softmax in float32, then apply the output matrix with LoRA's update.

        Each token has a query, but for a pooling, which has one alone. Logits are scaled by 1/sqrt(head
        size). With `sizes`, attention to a token is in proportion to the patches it stands for (ToMe).
        """
        bias = None if sizes is None else _size_bias(sizes, q.dtype)
        attend = partial(jax.nn.dot_product_attention, is_causal=self.causal)
        with jax.named_scope("attention"):
            mixed = keep(jax.checkpoint(attend)(q, k, v, bias))
        with jax.named_scope("out"):
            # Not `reshape` to -1, which an empty batch leaves open.
            return self._updated(self.out(mixed), rearrange(mixed, "b n a h -> b n (a h)"), added)

    def _updated(
        self, out: Float[Array, "B M D"], mixed: Float[Array, "B M D"], added: BlockAdapters
    ) -> Array:
        """Add LoRA's update to the output of the last matrix, whose input was `mixed`."""
        return keep(out if added.lora_out is None else out + added.lora_out(mixed))

    def probabilities(
        self, q: Float[Array, "B M A Dh"], k: Float[Array, "B N A Dh"], sizes: Sizes | None = None
    ) -> Float[Array, "B A M N"]:
        """Compute the attention of each query to each token, by which `mix` weighs values, in float32."""
        logits = jnp.einsum("bmah,bnah->bamn", q, k, preferred_element_type=jnp.float32)
        logits = logits * self.head_size**-0.5
        if sizes is not None:
            logits = logits + _size_bias(sizes, jnp.float32)
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1)


def _by_matrix(linear: nnx.LinearGeneral, x: Float[Array, "B N I"]) -> Float[Array, "B N O"]:
    """Apply a linear layer of several dimensions as the product of two matrices.

    XLA for TPUs otherwise takes it for a convolution, and makes tokens the fastest dimension.
    """
    kernel = linear.kernel[...].astype(linear.dtype)
    bias = linear.bias[...].astype(linear.dtype)  # type: ignore[index]  # it has one
    return jnp.einsum("bni,io->bno", x, kernel.reshape(x.shape[-1], -1)) + bias.reshape(1, 1, -1)


def _size_bias(sizes: Sizes, dtype: DTypeLike) -> Float[Array, "B 1 1 N"]:
    """Compute what is added to logits, so that attention to a token is in proportion to its patches."""
    return jnp.log(sizes).astype(dtype)[:, None, None, :]


class Mlp(nnx.Module):
    """The MLP of a block: two layers with the activation between them, `inner` channels wide inside.

    With `gated` it is SwiGLU (arXiv:2002.05202): the first layer gives twice as many channels, and the second
    half times the SiLU of the first goes on.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        gated: bool = False,
        numerics: Numerics = OPENAI,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.fc = nnx.Linear(width, 2 * inner if gated else inner, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(inner, width, dtype=dtype, rngs=rngs)
        self._activation = _swiglu if gated else _ACTIVATIONS[numerics.activation]

    @jax.named_scope("mlp")
    def __call__(self, x: Tokens, added: BlockAdapters) -> Tokens:
        """Apply the MLP to each token, with LoRA's updates."""
        hidden = self.fc(x)
        if added.lora_fc is not None:
            hidden = hidden + added.lora_fc(x)
        hidden = jax.checkpoint(self._activation)(keep(hidden))
        out = self.proj(hidden)
        return keep(out if added.lora_proj is None else out + added.lora_proj(hidden))


class LayerScale(nnx.Module):
    """A learned factor on each channel (arXiv:2103.17239)."""

    def __init__(self, width: int, *, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width))
        self.dtype = dtype

    def __call__(self, x: Tokens) -> Tokens:
        """Scale the channels."""
        return x * self.scale[...].astype(self.dtype)[None, None]


class BlockMacs(NamedTuple):
    """Multiply-accumulates of a block for one frame, by kind."""

    matrices: int  # the tower's matrices with activations
    products: int  # activations with each other: the two products of attention
    additions: int  # the added modules
    merging: int  # the similarities by which ToMe chooses patches


class BlockOutput(NamedTuple):
    """The output of a block; `trace` is None unless it is asked for."""

    tokens: Float[Array, "B M D"]
    sizes: Float[Array, "B M"] | None  # patches that each token stands for, None as long as that is one
    trace: BlockTrace | None


class Block(nnx.Module):
    """One transformer block: attention, then MLP, each with a LayerNorm before and a residual around it.

    The MLP is `mlp` channels wide inside. With `layer_scale`, a LayerScale is at the end of each of the two.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        *,
        causal: bool = False,
        gated: bool = False,
        layer_scale: bool = False,
        numerics: Numerics = OPENAI,
        attention: AttentionKernel = "auto",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.ln_1 = LayerNorm(width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, causal=causal, kernel=attention, dtype=dtype, rngs=rngs)
        self.ln_2 = LayerNorm(width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp, gated=gated, numerics=numerics, dtype=dtype, rngs=rngs)
        self.ls_1 = LayerScale(width, dtype=dtype) if layer_scale else None
        self.ls_2 = LayerScale(width, dtype=dtype) if layer_scale else None

    def __call__(self, x: Tokens) -> Tokens:
        """Run the block by itself, as on single images and texts."""
        return self.run(x, NOTHING).tokens

    def run(
        self,
        x: Tokens,
        added: BlockAdapters,
        *,
        sizes: Sizes | None = None,
        frames: int = 1,
        key: Key | None = None,
        drop_rate: Rate = 0.0,
        traced: bool = False,
    ) -> BlockOutput:
        """Run the block with the modules `added`, on videos of `frames` frames.

        `sizes` are the patches that each token stands for, None as long as that is one. In training, `key` is
        given: trained branches are dropped at `drop_rate`, and ZeroI2V's adapters apply their dropout. With
        `traced`, the output has a trace of what was mixed.
        """
        keys = [fold_in(key, i) for i in range(8)]
        # Stochastic depth drops the added branches and, where the block itself trains, its own too.
        branch_rate = drop_rate if added.drops_block else 0.0
        if added.before_attn is not None:
            x = keep(added.before_attn(x, frames))
        attention_over_time = None
        if added.temporal_out is not None:
            over_time, attention_over_time = self._over_time(x, added, added.temporal_out, frames, traced)
            x = keep(x + drop_path(over_time, frames, drop_rate, keys[0]))

        qkv = self.attn.project(_through(added.attn_in, self.ln_1(x), keys[1]), added)
        q, k, v = jnp.unstack(qkv, axis=-3)
        metric = k
        if added.shifts:
            k, v = (_shift(part, frames, added.shifts) for part in (k, v))
            qkv = jnp.stack([q, k, v], axis=-3)
        attention = trace.by_frame(self.attn.probabilities(q, k, sizes), added.shifts) if traced else None
        attended = _through(added.attn_out, self.attn.mix_packed(qkv, added, sizes), keys[2])
        if self.ls_1 is not None:
            attended = self.ls_1(attended)
        x = keep(x + drop_path(attended, frames, branch_rate, keys[3]))

        merging = None
        if added.merging:
            first, alike = added.prefix_tokens, frames if added.merges_alike else 1
            matches = tome.match(metric[:, first:], added.merging, alike)
            before, (x, sizes) = sizes, tome.merge(x, sizes, matches, prefix=first)
            if traced:
                merging = trace.merging(tome.places(matches, q.shape[1], prefix=first), before, sizes)
        if added.before_mlp is not None:
            x = keep(added.before_mlp(x, frames))
        y = self.ln_2(x)
        hidden = _through(added.mlp_out, self.mlp(_through(added.mlp_in, y, keys[4]), added), keys[5])
        if self.ls_2 is not None:
            hidden = self.ls_2(hidden)
        x = x + drop_path(hidden, frames, branch_rate, keys[7])
        if added.mlp_beside is not None:
            x = x + drop_path(added.beside_scale * added.mlp_beside(y), frames, drop_rate, keys[6])
        if attention is None:
            return BlockOutput(x, sizes, None)
        seen = trace.frames_seen(frames, added.shifts)
        return BlockOutput(x, sizes, BlockTrace(attention, seen, attention_over_time, merging))

    def _over_time(
        self, x: Tokens, added: BlockAdapters, out: Adapter, frames: int, traced: bool
    ) -> tuple[Tokens, Float[Array, "BN T T"] | None]:
        """Attend along the frames at each position, with the block's own attention, then apply `out`.

        With `traced`, also give that attention, averaged over the heads.
        """
        y = rearrange(self.ln_1(x), "(b t) n d -> (b n) t d", t=frames)
        qkv = self.attn.project(_through(added.temporal_in, y, None), added)
        mixed = rearrange(out(self.attn.mix_packed(qkv, added)), "(b n) t d -> (b t) n d", n=x.shape[1])
        q, k, _ = jnp.unstack(qkv, axis=-3)
        return mixed, self.attn.probabilities(q, k).mean(axis=1) if traced else None

    def macs(self, added: BlockAdapters, tokens: int, frames: int, *, merging: int, folded: bool) -> int:
        """Count the multiply-accumulates of the block with the modules `added`, for one frame.

        The frame is one of `frames` and has `tokens` tokens. The block counts as if it were asked to merge
        `merging` patches. With `folded`, modules that fold into the block's matrices cost nothing.
        """
        return sum(self.macs_by_kind(added, tokens, frames, merging=merging, folded=folded))

    def macs_by_kind(
        self, added: BlockAdapters, tokens: int, frames: int, *, merging: int, folded: bool
    ) -> BlockMacs:
        """Count what `macs` counts, split by kind."""
        left = tokens - tome.merged(tokens - added.prefix_tokens, merging)
        matrices = self.attention_macs(tokens) + self.mlp_macs(left)
        products = self.attention_product_macs(tokens)
        if added.temporal_out is not None:
            matrices += self.attention_macs(frames) * tokens // frames
            products += self.attention_product_macs(frames) * tokens // frames
        additions = sum(
            module.macs(left if place in _BEHIND_MERGE else tokens)
            for place, module in added.by_place().items()
            if not (folded and isinstance(module, FOLDING))
        )
        choice = tome.macs(tokens - added.prefix_tokens, self.attn.head_size) if merging else 0
        return BlockMacs(matrices - products, products, additions, choice)

    def attention_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the attention among `tokens` tokens."""
        return 4 * tokens * self.mlp.fc.in_features**2 + self.attention_product_macs(tokens)

    def attention_product_macs(self, tokens: int) -> int:
        """Count those of `attention_macs` that multiply activations with each other."""
        return 2 * tokens**2 * self.mlp.fc.in_features

    def mlp_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the MLP on `tokens` tokens."""
        fc, proj = self.mlp.fc, self.mlp.proj
        return tokens * (fc.in_features * fc.out_features + proj.in_features * proj.out_features)


def _through(module: Adapter | LinearAdapter | None, x: Tokens, key: Key | None) -> Tokens:
    """Apply `module`; where there is none, return `x`."""
    if module is None:
        return x
    return module(x, key) if isinstance(module, LinearAdapter) else module(x)


def _shift(
    x: Float[Array, "BT N A Dh"], frames: int, shifts: tuple[tuple[int, int], ...]
) -> Float[Array, "BT N A Dh"]:
    """Take some heads from other frames of the same video; see `shift_heads`."""
    by_video = rearrange(x, "(b t) n a h -> b t n a h", t=frames)
    return rearrange(shift_heads(by_video, shifts), "b t n a h -> (b t) n a h")
