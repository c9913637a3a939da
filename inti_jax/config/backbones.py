"""Which backbones there are, and what has to be known of one besides its weights."""

import dataclasses
from typing import Literal

# Of OpenAI's CLIP, for pixels in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class BackboneSize:
    """The shape of a CLIP image tower."""

    width: int
    layers: int
    heads: int
    patch: int
    resolution: int  # pixels a side


# CLIP's own (arXiv:2103.00020, table 20); `tiny` is ours, for tests and the embedded dataset.
BACKBONES = {
    "clip_vit_b32": BackboneSize(width=768, layers=12, heads=12, patch=32, resolution=224),
    "clip_vit_b16": BackboneSize(width=768, layers=12, heads=12, patch=16, resolution=224),
    "clip_vit_l14": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=224),
    "clip_vit_l14_336": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=336),
    "tiny": BackboneSize(width=96, layers=4, heads=4, patch=8, resolution=32),
}


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a checkpoint was trained with and the shapes of its weights do not tell."""

    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # `gelu` is the exact one, with erf
    eps: float = 1e-5  # of every LayerNorm


OPENAI = Numerics()


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a run's tower starts from; kept with the run, whose checkpoints are then enough by themselves."""

    numerics: Numerics = OPENAI
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    embed: int | None = None  # width of the space shared with texts, if the head works in it
    sha256: str | None = None  # of the converted weights; None for a random start
