"""Published methods in PyTorch, each in a few lines from its paper: what our models are compared with.

A method takes our parameters, a flat `{path: tensor}`, and normalised frames `[B, T, H, W, 3]`, and
returns features `[B, D]`. Tokens are `[B, T, N, D]` throughout: the class token, registers, patches. Where
the parameters have no class token, the frame's feature is the mean of its patches.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

Params = dict[str, torch.Tensor]


# CLIP (arXiv:2103.00020).


def clip(params: Params, frames: torch.Tensor) -> torch.Tensor:
    """The image tower on each frame by itself."""
    x = embed(params, frames)
    for block, _ in blocks(params):
        x = x + attention(layer_norm(x, block, "ln_1"), block)
        x = x + mlp(layer_norm(x, block, "ln_2"), block)
    return mean_of_normalized(x, params)


def embed(params: Params, frames: torch.Tensor) -> torch.Tensor:
    """The tokens that enter the first block. A temporal embedding, if there is one, is for all tokens."""
    kernel = params["tower.patch_embed.kernel"].permute(3, 2, 0, 1)
    images = frames.flatten(0, 1).permute(0, 3, 1, 2)
    patches = functional.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    patches = patches.unflatten(0, frames.shape[:2])
    positions = params["tower.positional_embedding"]
    first = [
        params[name].reshape(-1, kernel.shape[0])
        for name in ("tower.class_embedding", "tower.registers")
        if name in params
    ]
    if "tower.class_embedding" in params:
        first[0] = first[0] + positions[:1]
    first = [tokens.expand(*frames.shape[:2], -1, -1) for tokens in first]
    x = torch.cat([*first, patches + positions[-patches.shape[2] :]], dim=2)
    if "temporal.embedding" in params:
        x = x + params["temporal.embedding"][:, None]
    return layer_norm(x, params, "tower.ln_pre")


def prefix_tokens(params: Params) -> int:
    """Count the tokens before the patches."""
    return ("tower.class_embedding" in params) + len(params.get("tower.registers", ()))


def blocks(params: Params) -> list[tuple[Params, Params]]:
    """For each block its own parameters, and those of what is added to it."""
    depth = 1 + max(int(path.split(".")[2]) for path in params if path.startswith("tower.blocks."))
    return [(under(params, f"tower.blocks.{i}."), under(params, f"adapters.{i}.")) for i in range(depth)]


def under(params: Params, prefix: str) -> Params:
    return {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}


def attention(x: torch.Tensor, block: Params) -> torch.Tensor:
    """Over the tokens on the axis before the last, whatever the axes before it are."""
    return attend(*queries_keys_values(x, block), block)


def queries_keys_values(x: torch.Tensor, block: Params) -> tuple[torch.Tensor, ...]:
    """Three `[..., N, A, Dh]`."""
    packed = torch.einsum("...nd,dcah->...ncah", x, block["attn.qkv.kernel"]) + block["attn.qkv.bias"]
    return packed.unbind(-3)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: Params, size: torch.Tensor | None = None
) -> torch.Tensor:
    """A key that stands for `size` tokens, `[..., N]`, weighs as much as they would."""
    logits = torch.einsum("...nah,...mah->...anm", q, k) / q.shape[-1] ** 0.5
    if size is not None:
        logits = logits + size.log()[..., None, None, :]
    mixed = torch.einsum("...anm,...mah->...nah", logits.softmax(-1), v)
    return torch.einsum("...nah,ahd->...nd", mixed, block["attn.out.kernel"]) + block["attn.out.bias"]


def mlp(x: torch.Tensor, block: Params) -> torch.Tensor:
    hidden = linear(x, block, "mlp.fc")
    return linear(hidden * torch.sigmoid(1.702 * hidden), block, "mlp.proj")


def linear(x: torch.Tensor, params: Params, name: str) -> torch.Tensor:
    return x @ params[f"{name}.kernel"] + params[f"{name}.bias"]


def layer_norm(x: torch.Tensor, params: Params, name: str) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], params[f"{name}.scale"], params[f"{name}.bias"], eps=1e-5)


def mean_of_normalized(x: torch.Tensor, params: Params, size: torch.Tensor | None = None) -> torch.Tensor:
    return layer_norm(pool(x, params, size), params, "tower.ln_post").mean(dim=1)


def normalized_mean(x: torch.Tensor, params: Params) -> torch.Tensor:
    """ST-Adapter's own."""
    return layer_norm(pool(x, params).mean(dim=1), params, "tower.ln_post")


def pool(x: torch.Tensor, params: Params, size: torch.Tensor | None = None) -> torch.Tensor:
    """The class token or, where there is none, the mean of the patches, merged ones by their size."""
    if "tower.class_embedding" in params:
        return x[:, :, 0]
    first = prefix_tokens(params)
    weights = x.new_ones(x.shape[:-1]) if size is None else size
    weights = weights[:, :, first:, None]
    return (x[:, :, first:] * weights).sum(dim=2) / weights.sum(dim=2)


def idle_adapter(path: str, width: int) -> Params:
    """An adapter that adds nothing, for a model that has none there."""
    zeros = {"down.kernel": (width, 1), "down.bias": (1,), "up.kernel": (1, width), "up.bias": (width,)}
    return {f"{path}.{name}": torch.zeros(shape, dtype=torch.float64) for name, shape in zeros.items()}


# AIM (arXiv:2302.03024).


def aim(params: Params, frames: torch.Tensor, *, scale: float, temporal_adapters: int) -> torch.Tensor:
    """The block's own attention, first over time at each position, then over space."""
    x = embed(params, frames)
    for block, added in blocks(params):
        over_time = layer_norm(x, block, "ln_1").transpose(1, 2)
        if temporal_adapters == 2:
            over_time = over_time + bottleneck(over_time, added, "temporal_in")
        x = x + bottleneck(attention(over_time, block), added, "temporal_out").transpose(1, 2)
        over_space = attention(layer_norm(x, block, "ln_1"), block)
        x = x + over_space + bottleneck(over_space, added, "attn_out")
        y = layer_norm(x, block, "ln_2")
        x = x + mlp(y, block) + scale * bottleneck(y, added, "mlp_beside")
    return mean_of_normalized(x, params)


def bottleneck(x: torch.Tensor, added: Params, slot: str) -> torch.Tensor:
    return linear(functional.gelu(linear(x, added, f"{slot}.down")), added, f"{slot}.up")


# ST-Adapter (arXiv:2206.13559).


def st_adapter(
    params: Params,
    frames: torch.Tensor,
    *,
    before: Sequence[str],
    pool: Callable[[torch.Tensor, Params], torch.Tensor] = normalized_mean,
) -> torch.Tensor:
    """`before` names one or both of `attn` and `mlp`."""
    x, first = embed(params, frames), prefix_tokens(params)
    for block, added in blocks(params):
        if "attn" in before:
            x = convolve_in_time(x, added, "before_attn", first)
        x = x + attention(layer_norm(x, block, "ln_1"), block)
        if "mlp" in before:
            x = convolve_in_time(x, added, "before_mlp", first)
        x = x + mlp(layer_norm(x, block, "ln_2"), block)
    return pool(x, params)


def convolve_in_time(x: torch.Tensor, added: Params, slot: str, prefix: int) -> torch.Tensor:
    """A channel at a time, with zeros beside the clip; the tokens before the patches pass by."""
    first, patches = x[:, :, :prefix], x[:, :, prefix:]
    hidden = linear(patches, added, f"{slot}.down").permute(0, 2, 3, 1)  # [B, N, C, T]
    kernel = added[f"{slot}.conv.kernel"].T[:, None]
    convolved = functional.conv1d(
        hidden.flatten(0, 1), kernel, added[f"{slot}.conv.bias"], padding=1, groups=len(kernel)
    )
    convolved = convolved.reshape(hidden.shape).permute(0, 3, 1, 2)
    return torch.cat([first, patches + linear(convolved, added, f"{slot}.up")], dim=2)


# ZeroI2V (arXiv:2310.01324).


def zero_i2v(
    params: Params, frames: torch.Tensor, *, scale: float, shifts: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Linear adapters around the attention and the MLP, and some heads that look at other frames."""

    def adapted(x: torch.Tensor, added: Params, slot: str) -> torch.Tensor:
        return x + scale * linear(linear(x, added, f"{slot}.down"), added, f"{slot}.up")

    x = embed(params, frames)
    for block, added in blocks(params):
        q, k, v = queries_keys_values(adapted(layer_norm(x, block, "ln_1"), added, "attn_in"), block)
        k, v = shift_heads(k, shifts), shift_heads(v, shifts)
        x = x + adapted(attend(q, k, v, block), added, "attn_out")
        y = adapted(layer_norm(x, block, "ln_2"), added, "mlp_in")
        x = x + adapted(mlp(y, block), added, "mlp_out")
    return mean_of_normalized(x, params)


def shift_heads(x: torch.Tensor, shifts: Sequence[tuple[int, int]]) -> torch.Tensor:
    """`x` `[B, T, N, A, Dh]`; a shift `(offset, heads)` gives the next `heads` heads the frames t + offset.

    Where there is no such frame, a frame keeps its own.
    """
    frames, parts, start = range(x.shape[1]), [], 0
    for offset, heads in shifts:
        sources = [t + offset if t + offset in frames else t for t in frames]
        parts.append(x[:, sources, :, start : start + heads])
        start += heads
    return torch.cat([*parts, x[:, :, :, start:]], dim=3)


# LoRA (arXiv:2106.09685).


def lora(params: Params, frames: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """CLIP with W + (alpha / rank) B A for each W that has a pair of B and A."""
    updated = dict(params)
    for i, (block, added) in enumerate(blocks(params)):
        qkv = block["attn.qkv.kernel"].unbind(1)
        updated[f"tower.blocks.{i}.attn.qkv.kernel"] = torch.stack(
            [
                update(kernel, added, f"lora_{target}", alpha)
                for target, kernel in zip(("query", "key", "value"), qkv, strict=True)
            ],
            dim=1,
        )
        for name in ("attn.out", "mlp.fc", "mlp.proj"):
            target = name.split(".")[1]
            updated[f"tower.blocks.{i}.{name}.kernel"] = update(
                block[f"{name}.kernel"], added, f"lora_{target}", alpha
            )
    return clip(updated, frames)


def update(kernel: torch.Tensor, added: Params, slot: str, alpha: float) -> torch.Tensor:
    if f"{slot}.down.kernel" not in added:
        return kernel
    down, up = added[f"{slot}.down.kernel"], added[f"{slot}.up.kernel"]
    return kernel + alpha / down.shape[1] * (down @ up).reshape(kernel.shape)


# ToMe (arXiv:2210.09461).


def tome(params: Params, frames: torch.Tensor, *, r: Sequence[int], alike: bool = False) -> torch.Tensor:
    """CLIP with `r[i]` tokens of each frame merged away in block i, between its attention and its MLP.

    Each frame decides by itself, or with `alike` all frames of a clip together, by their mean similarity.
    """
    x = embed(params, frames)
    size = None
    for (block, _), merges in zip(blocks(params), r, strict=True):
        q, k, v = queries_keys_values(layer_norm(x, block, "ln_1"), block)
        x = x + attend(q, k, v, block, size)
        if merges:
            size = x.new_ones(x.shape[:-1]) if size is None else size
            metric = k.detach().mean(dim=-2)
            x, size = merge_tokens(x, size, metric, merges, prefix_tokens(params), alike)
        x = x + mlp(layer_norm(x, block, "ln_2"), block)
    return mean_of_normalized(x, params, size)


def merge_tokens(
    x: torch.Tensor, size: torch.Tensor, metric: torch.Tensor, r: int, prefix: int, alike: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens `[B, T, N - r, D]`, each the mean of those that merged in it, and their sizes."""
    deciding = [video if alike else frame[None] for video in metric for frame in video]
    belongs = torch.stack([group_tokens(frames, r, prefix) for frames in deciding])
    belongs = belongs.unflatten(0, x.shape[:2]).to(x.dtype)
    merged_size = (belongs @ size[..., None])[..., 0]
    return belongs @ (x * size[..., None]) / merged_size[..., None], merged_size


def group_tokens(metric: torch.Tensor, r: int, prefix: int) -> torch.Tensor:
    """`[N - r, N]`, 0 or 1: the tokens of a frame that form each new one.

    The tokens before the patches are first, then the patches that stay, then those that others join.
    """
    stay, merged, into = match_tokens(metric, r, prefix)
    first, joined = list(range(prefix)), list(range(prefix, metric.shape[-2], 2))
    rows = [*first, *stay.tolist(), *joined]
    belongs = torch.zeros(len(rows), metric.shape[-2])
    belongs[range(len(rows)), rows] = 1
    for source, target in zip(merged.tolist(), into.tolist(), strict=True):
        belongs[rows.index(target), source] = 1
    return belongs


def match_tokens(
    metric: torch.Tensor, r: int, prefix: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The patches kept, the patches merged, and those they join, by `metric` `[frames, N, Dh]`.

    Every other patch, from the second on, proposes the one of the others that is most like it; the `r`
    closest pairs merge. At most half of the patches can merge, and none of the first `prefix` tokens.
    """
    proposing = torch.arange(prefix + 1, metric.shape[-2], 2)
    others = torch.arange(prefix, metric.shape[-2], 2)
    r = min(r, len(proposing))
    metric = functional.normalize(metric, dim=-1)
    scores = (metric[:, proposing] @ metric[:, others].transpose(1, 2)).mean(dim=0)
    best, partner = scores.max(dim=1)
    order = best.argsort(descending=True)
    merged, kept = order[:r], order[r:].sort().values
    return proposing[kept], proposing[merged], others[partner[merged]]
