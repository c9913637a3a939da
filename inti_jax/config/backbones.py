"""Describe the backbones: their sizes, and the facts about a checkpoint that its weights do not tell."""

import dataclasses
from typing import Literal

# Mean and standard deviation of OpenAI's CLIP, for red, green and blue in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class BackboneSize:
    """The shape of an image tower."""

    width: int  # channels of a token
    layers: int  # blocks
    heads: int  # of each block's attention
    patch: int  # pixels a side
    resolution: int  # pixels a side
    class_token: bool = True  # whether a class token is the first token
    registers: int = 0  # learned tokens without a position, between the class token and the patches
    # How the tokens of the last block become a frame's feature: "class_token" or the mean of the "patches".
    pooling: Literal["class_token", "patches"] = "class_token"

    @property
    def prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return self.class_token + self.registers


# The sizes of CLIP (arXiv:2103.00020, table 20). `tiny` is ours, for tests and the embedded dataset.
BACKBONES = {
    "clip_vit_b32": BackboneSize(width=768, layers=12, heads=12, patch=32, resolution=224),
    "clip_vit_b16": BackboneSize(width=768, layers=12, heads=12, patch=16, resolution=224),
    "clip_vit_l14": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=224),
    "clip_vit_l14_336": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=336),
    "tiny": BackboneSize(width=96, layers=4, heads=4, patch=8, resolution=32),
}


def name_of(size: BackboneSize) -> str | None:
    """Name the backbone of this size, the one of the nearest resolution; None where there is none."""
    fitting = [
        name
        for name, named in BACKBONES.items()
        if dataclasses.replace(named, resolution=size.resolution) == size
    ]
    return min(fitting, key=lambda name: abs(BACKBONES[name].resolution - size.resolution), default=None)


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The numerics that a checkpoint was trained with, which the shapes of its weights do not tell."""

    activation: Literal["quick_gelu", "gelu"] = (
        "quick_gelu"  # of every MLP; "gelu" is the exact GELU, with erf
    )
    eps: float = 1e-5  # epsilon of every LayerNorm


OPENAI = Numerics()


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The facts about the weights that a run's tower starts from.

    They are kept with the run, so that its checkpoints can be used without those weights.
    """

    numerics: Numerics = OPENAI
    mean: tuple[float, float, float] = CLIP_MEAN  # of the pixels in [0, 1], subtracted from them
    std: tuple[float, float, float] = CLIP_STD  # of the pixels, which are divided by it
    embed: int | None = None  # width of the space shared with texts; None where the head does not use it
    sha256: str | None = None  # of the file of converted weights; None for a random start
