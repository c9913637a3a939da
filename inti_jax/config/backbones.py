"""Describe the backbones: their sizes, and the facts about a checkpoint that its weights do not tell."""

import dataclasses
import math
from typing import Any, Literal

from inti_jax.config import resolution as resolutions
from inti_jax.config.resolution import Resolution

# Mean and standard deviation of OpenAI's CLIP, for red, green and blue in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Those of ImageNet, which DINOv2 uses.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Those of SigLIP.
HALF = (0.5, 0.5, 0.5)


# The value of `model.backbone` that takes the size which the file `model.pretrained` describes.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class BackboneSize:
    """The shape of an image tower. Raises ValueError where no tower can have it."""

    width: int  # channels of a token
    layers: int  # blocks
    heads: int  # of each block's attention
    patch: int  # pixels a side
    resolution: Resolution  # pixels of a square's side, or height and width
    class_token: bool = True  # whether a class token is the first token
    registers: int = 0  # learned tokens without a position, between the class token and the patches
    # How the tokens of the last block become a frame's feature: "class_token", the mean of the "patches", or
    # "attention" of a learned token to them all, with an MLP behind it.
    pooling: Literal["class_token", "patches", "attention"] = "class_token"
    mlp: int | None = None  # channels inside the MLP; None for four times the width
    gated: bool = False  # SwiGLU in place of the MLP: one half of the first layer's outputs gates the other
    layer_scale: bool = False  # a learned factor on each channel behind attention and MLP
    pre_norm: bool = True  # a LayerNorm before the first block
    patch_bias: bool = False  # whether the patch embedding has a bias

    def __post_init__(self) -> None:
        """Write a square resolution by its side, so that equal sizes are equal."""
        object.__setattr__(self, "resolution", resolutions.simplest(self.resolution))
        counts = (self.width, self.layers, self.heads, self.patch, self.mlp_width, *self.height_width)
        if min(counts) < 1 or self.registers < 0 or self.width % self.heads:
            raise ValueError(f"{self} is not the size of a tower")

    @property
    def height_width(self) -> tuple[int, int]:
        """The height and the width of images, in pixels."""
        return resolutions.height_width(self.resolution)

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and the columns of patches."""
        height, width = self.height_width
        return height // self.patch, width // self.patch

    def alike(self, other: "BackboneSize") -> bool:
        """Tell whether two sizes differ in the resolution at most, to which positions are resampled."""
        return dataclasses.replace(self, resolution=other.resolution) == other

    @property
    def mlp_width(self) -> int:
        """The number of channels inside the MLP."""
        return 4 * self.width if self.mlp is None else self.mlp

    @property
    def prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return self.class_token + self.registers


def _dinov2(width: int, layers: int, heads: int, **changes: Any) -> BackboneSize:
    return BackboneSize(
        width, layers, heads, 14, 518, layer_scale=True, pre_norm=False, patch_bias=True, **changes
    )


def _siglip(width: int, layers: int, heads: int, patch: int, resolution: int, **changes: Any) -> BackboneSize:
    return BackboneSize(
        width,
        layers,
        heads,
        patch,
        resolution,
        class_token=False,
        pooling="attention",
        pre_norm=False,
        patch_bias=True,
        **changes,
    )


_DINOV2 = {
    "dinov2_vit_s14": _dinov2(384, 12, 6),
    "dinov2_vit_b14": _dinov2(768, 12, 12),
    "dinov2_vit_l14": _dinov2(1024, 24, 16),
    "dinov2_vit_g14": _dinov2(1536, 40, 24, mlp=4096, gated=True),
}

# Those of SigLIP (arXiv:2303.15343) and SigLIP 2 (arXiv:2502.14786), each at the first of its published
# resolutions. These are 256 for B/32 and g/16; 224, 256, 384 and 512 for B/16; 256, 384 and 512 for L/16 and
# so400m/16; 224 and 384 for so400m/14, where 384 makes the grid of 378, which is a multiple of 14.
_SIGLIP = {
    "siglip_vit_b32": _siglip(768, 12, 12, 32, 256),
    "siglip_vit_b16": _siglip(768, 12, 12, 16, 224),
    "siglip_vit_l16": _siglip(1024, 24, 16, 16, 256),
    "siglip_vit_g16": _siglip(1536, 40, 16, 16, 256),
    "siglip_so400m_14": _siglip(1152, 27, 16, 14, 224, mlp=4304),
    "siglip_so400m_16": _siglip(1152, 27, 16, 16, 256, mlp=4304),
}

# The sizes of CLIP (arXiv:2103.00020, table 20), of open_clip's larger models (arXiv:2212.07143), of DINOv2
# (arXiv:2304.07193), also with registers (arXiv:2309.16588), and of SigLIP. `tiny` is ours, for tests and the
# embedded dataset.
BACKBONES = {
    "clip_vit_b32": BackboneSize(width=768, layers=12, heads=12, patch=32, resolution=224),
    "clip_vit_b16": BackboneSize(width=768, layers=12, heads=12, patch=16, resolution=224),
    "clip_vit_l14": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=224),
    "clip_vit_l14_336": BackboneSize(width=1024, layers=24, heads=16, patch=14, resolution=336),
    "clip_vit_b16_plus_240": BackboneSize(width=896, layers=12, heads=14, patch=16, resolution=240),
    "clip_vit_h14": BackboneSize(width=1280, layers=32, heads=16, patch=14, resolution=224),
    "clip_vit_g14": BackboneSize(width=1408, layers=40, heads=16, patch=14, resolution=224, mlp=6144),
    "clip_vit_bigg14": BackboneSize(width=1664, layers=48, heads=16, patch=14, resolution=224, mlp=8192),
    **_DINOV2,
    **{f"{name}_reg": dataclasses.replace(size, registers=4) for name, size in _DINOV2.items()},
    **_SIGLIP,
    "tiny": BackboneSize(width=96, layers=4, heads=4, patch=8, resolution=32),
}


def name_of(size: BackboneSize) -> str | None:
    """Name the backbone of this size, the one of the nearest resolution; None where there is none."""
    fitting = [name for name, named in BACKBONES.items() if named.alike(size)]
    side = math.sqrt(math.prod(size.height_width))
    return min(fitting, key=lambda name: abs(BACKBONES[name].height_width[0] - side), default=None)


def describe(size: BackboneSize) -> str:
    """Name the backbone of this size, at the nearest resolution, or else put the size in words."""
    return name_of(size) or (
        f"a ViT of width {size.width} with {size.layers} layers, {size.heads} heads and patches of "
        f"{size.patch}"
    )


def called(name: str, size: BackboneSize) -> str:
    """Give the name of a backbone, or describe the one that was found, of this size, for "auto"."""
    return describe(size) if name == AUTO else name


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The numerics that a checkpoint was trained with, which the shapes of its weights do not tell."""

    # Of every MLP: "gelu" is the exact GELU, with erf, and "gelu_tanh" its approximation with tanh.
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    eps: float = 1e-5  # epsilon of every LayerNorm
    # How positions are resampled to another grid: bicubic, as in open_clip ("antialiased"), or as in DINOv2
    # without registers and in transformers' SigLIP ("plain").
    resampling: Literal["antialiased", "plain"] = "antialiased"


OPENAI = Numerics()
DINOV2 = Numerics("gelu", 1e-6, "plain")
DINOV2_WITH_REGISTERS = Numerics("gelu", 1e-6)
SIGLIP = Numerics("gelu_tanh", 1e-6, "plain")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The size of a run's tower, and the facts about the weights that it starts from.

    They are kept with the run, so that its checkpoints can be used without those weights.
    """

    size: BackboneSize  # at the resolution of the weights, which need not be that of the run
    numerics: Numerics = OPENAI
    mean: tuple[float, float, float] = CLIP_MEAN  # of the pixels in [0, 1], subtracted from them
    std: tuple[float, float, float] = CLIP_STD  # of the pixels, which are divided by it
    embed: int | None = None  # width of the space shared with texts; None where the head does not use it
    sha256: str | None = None  # of the file of converted weights; None for a random start


def published(name: str) -> Backbone:
    """Give the backbone `name`, with the facts of the weights that its family was published with."""
    size = BACKBONES[name]
    if name.startswith("siglip"):
        return Backbone(size, SIGLIP, HALF, HALF)
    if not name.startswith("dinov2"):
        return Backbone(size)
    numerics = DINOV2_WITH_REGISTERS if size.registers else DINOV2
    return Backbone(size, numerics, IMAGENET_MEAN, IMAGENET_STD)
