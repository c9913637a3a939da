"""Load converted weights: `inti_jax.load_clip(FILE)`, `inti_jax.load_tower(FILE)`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inti_jax.pretrained.encoders import ClipModel, TowerModel


def load_clip(path: str | Path) -> "ClipModel":
    """Load a CLIP from a file that `python -m inti_jax.convert` wrote, or from a checkpoint that it takes.

    A checkpoint is converted once, into a file beside it. `path` may be the name of a checkpoint on the
    Hugging Face Hub, such as `openai/clip-vit-base-patch16`. Raises UserError where it cannot be converted.

    Example:
        >>> import inti_jax, numpy
        >>> clip = inti_jax.load_clip("clip.safetensors")
        >>> image = clip.encode_image(numpy.zeros((1, 224, 224, 3), numpy.uint8))
        >>> text = clip.encode_text(["a photo of a dog"])
        >>> image.shape == text.shape
        True
    """
    # Imported late, so that naming the function loads neither JAX nor Flax.
    from inti_jax.distributed import backend
    from inti_jax.pretrained.converted import open_converted
    from inti_jax.pretrained.encoders import ClipModel

    backend.start()
    return ClipModel(open_converted(path))


def load_tower(path: str | Path) -> "TowerModel":
    """Load the image tower of a file or checkpoint that `load_clip` takes, or of DINOv2 or SigLIP.

    Example:
        >>> import inti_jax, numpy
        >>> tower = inti_jax.load_tower("dinov2.safetensors")
        >>> tower.features(numpy.zeros((2, 224, 224, 3), numpy.uint8)).shape
        (2, 384)
    """
    from inti_jax.distributed import backend
    from inti_jax.pretrained.converted import open_converted
    from inti_jax.pretrained.encoders import TowerModel

    backend.start()
    return TowerModel(open_converted(path))
