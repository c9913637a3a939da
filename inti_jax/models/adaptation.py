"""Choose the modules that an adaptation method adds to each block.

A method chooses modules for named places in the block, so methods, temporal modules and compressors combine.
The tower stays CLIP's own. The added modules are beside it, in one `BlockAdapters` for each block.
"""

from flax import nnx
from jax.typing import DTypeLike

from inti_jax.config import TEMPORAL_OF, Model
from inti_jax.config.backbones import BackboneSize
from inti_jax.models import tome
from inti_jax.models.adapters import (
    FOLDING,
    Adapter,
    AddedModule,
    BlockAdapters,
    LinearAdapter,
    LowRank,
    TemporalConv,
)


def temporal_modules(config: Model) -> set[str]:
    """Collect the temporal modules: the method's own and `model.temporal`."""
    return {TEMPORAL_OF.get(config.adaptation, "none"), config.temporal} - {"none"}


def has_temporal_embedding(config: Model) -> bool:
    """Tell whether the model adds a temporal embedding to its tokens.

    AIM and ZeroI2V have one. Without it, attention over time does not see the order of frames.
    """
    return config.adaptation == "zero_i2v" or "attention" in temporal_modules(config)


def build_adapters(
    config: Model,
    size: BackboneSize,
    block: int,
    *,
    folded: bool = False,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> BlockAdapters:
    """Build what the config's method adds to block `block`, counted from 0.

    With `folded`, the modules that `fold.fold` folds into the tower are left out.
    """
    modules = _modules(config, size, dtype=dtype, rngs=rngs)
    if folded:
        modules = {place: module for place, module in modules.items() if not isinstance(module, FOLDING)}
    matching = config.compression.matching
    return BlockAdapters(
        modules,
        prefix_tokens=size.prefix_tokens,
        shifts=config.zero_i2v.shifts if "shift" in temporal_modules(config) else (),
        beside_scale=config.aim.scale,
        drops_block=config.adaptation == "full",
        merging=tome.merging(config, size.layers)[block],
        merges_alike=matching == "clip" or (matching == "auto" and bool(temporal_modules(config))),
    )


def _modules(
    config: Model, size: BackboneSize, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> dict[str, AddedModule]:
    """Build the modules of the config's method and temporal module, by place."""
    width = size.width
    modules: dict[str, AddedModule] = {}

    def adapter(skip: bool) -> Adapter:
        return Adapter(width, int(config.aim.bottleneck * width), skip=skip, dtype=dtype, rngs=rngs)

    def conv() -> TemporalConv:
        return TemporalConv(
            width, config.st_adapter.width, prefix_tokens=size.prefix_tokens, dtype=dtype, rngs=rngs
        )

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
                outputs = (2 if size.gated else 1) * size.mlp_width
                modules[f"lora_{target}"] = LowRank(
                    size.mlp_width if target == "proj" else width,
                    outputs if target == "fc" else width,
                    rank=config.lora.rank,
                    alpha=config.lora.alpha,
                    dtype=dtype,
                    rngs=rngs,
                )
    return modules
