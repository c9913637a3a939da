"""Encode images and texts with converted weights: what `inti_jax.load_clip` and `load_tower` return."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from inti_jax.errors import UserError
from inti_jax.models import in_memory
from inti_jax.models.pieces import Pieces, PieceTokenizer
from inti_jax.models.tokenizer import Tokenizer
from inti_jax.pretrained.clip_file import ClipFile, Description, build

_TEXTS_AT_ONCE = 256


class TextEncoder:
    """A converted file's text tower in float32 on one device, with the file's vocabulary.

    The file's other weights are not read.
    """

    def __init__(self, file: ClipFile):
        description = file.description
        architecture = description.architecture
        self._path = file.path
        self._params = {path: jnp.asarray(file[path].read()) for path in file if path.startswith("text.")}
        self._tokenizer: Tokenizer | PieceTokenizer | None = None
        vocabulary = description.vocabulary
        if architecture.text is not None and vocabulary is not None:
            context = architecture.text.context
            self._tokenizer = (
                PieceTokenizer(vocabulary, context)
                if isinstance(vocabulary, Pieces)
                else Tokenizer(vocabulary, context, description.cleaning)
            )
        self._embed = architecture.embed or 0
        self._encode = _jit(lambda params, tokens: build(architecture, params).encode_text(tokens))

    def __call__(self, texts: Iterable[Any]) -> Float[np.ndarray, "B E"]:
        """Encode texts as `ClipModel.encode_text` does."""
        if not self._params:
            raise UserError(f"{self._path} has no text tower: convert a whole CLIP")
        if isinstance(texts, str | bytes):
            raise UserError(f"encode_text takes a list of texts, not a single {type(texts).__name__}")
        if self._tokenizer is None:
            raise UserError(f"{self._path} holds no vocabulary: convert it again with --vocab FILE")
        tokens = self._tokenizer(texts)
        parts = [tokens[i : i + _TEXTS_AT_ONCE] for i in range(0, len(tokens), _TEXTS_AT_ONCE)]
        features = [np.asarray(self._encode(self._params, part)) for part in parts]
        return np.concatenate([np.zeros((0, self._embed), np.float32), *features])


class TowerModel:
    """An image tower in float32 on one device, with the pixel statistics of its file."""

    def __init__(self, file: ClipFile):
        self.description = file.description
        self._params = {path: jnp.asarray(file[path].read()) for path in file if path.startswith("tower.")}
        architecture = file.description.architecture
        self._features = _jit(lambda params, images: build(architecture, params).tower(images))

    def features(self, images: Any) -> Float[np.ndarray, "B D"]:
        """Compute the pooled features of images.

        With CLIP and DINOv2 that is the class token after the last LayerNorm, with SigLIP the attention
        pooling's output. Takes images as `ClipModel.encode_image` does, and raises the same errors.
        """
        return _on_images(self._features, self._params, images, self.description)


class ClipModel:
    """A CLIP in float32 on one device, with the pixel statistics and the vocabulary of its file."""

    def __init__(self, file: ClipFile):
        self.description = file.description
        architecture = file.description.architecture
        self._path = file.path
        self._params = {path: jnp.asarray(file[path].read()) for path in file if not path.startswith("text.")}
        self._image = _jit(lambda params, images: build(architecture, params).encode_image(images))
        self._text = TextEncoder(file)

    @property
    def projection(self) -> Float[np.ndarray, "D E"]:
        """The matrix from the image tower's feature to the space of texts.

        Raises UserError where the file has none.
        """
        if "projection.kernel" not in self._params:
            raise UserError(f"{self._path} has no projection to the space of texts: convert a whole CLIP")
        return np.asarray(self._params["projection.kernel"])

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities in CLIP's logits. Raises UserError without a text tower."""
        if "logit_scale" not in self._params:
            raise UserError(f"{self._path} has no text tower: convert a whole CLIP")
        return float(np.exp(self._params["logit_scale"]))

    @property
    def logit_bias(self) -> float:
        """The bias that SigLIP's logits add to scaled cosines; 0 for CLIP."""
        return float(self._params.get("logit_bias", 0.0))

    def encode_image(self, images: Any) -> Float[np.ndarray, "B E"]:
        """Encode RGB images `[B, H, W, 3]` at the model's resolution as features, not L2-normalised.

        Images are an array of NumPy, JAX or torch, or a list of arrays or Pillow images. The batch may be
        empty (B = 0). uint8 values are pixels; they may be grey or have an opacity, which is left out. Floats
        are taken as already normalised. Without a projection in the file, the result is the tower's feature.
        Raises UserError for another shape or type.
        """
        return _on_images(self._image, self._params, images, self.description)

    def encode_text(self, texts: Iterable[Any]) -> Float[np.ndarray, "B E"]:
        """Encode a list of texts, which may be empty, as features, not L2-normalised.

        Texts are cleaned as in the library that the weights are from, and cut to the model's context. Raises
        UserError where the file has no text tower or no vocabulary, or where an item is no text.
        """
        return self._text(texts)


def _on_images(
    compute: Callable[..., jax.Array], params: dict[str, jax.Array], images: Any, description: Description
) -> Float[np.ndarray, "B D"]:
    """Call `compute(params, images)` with the images normalised."""
    height, width = description.architecture.image.height_width
    images = in_memory.pixels(images)
    if images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise UserError(f"this model takes images [B, {height}, {width}, 3], not {list(images.shape)}")
    if images.dtype == np.uint8:
        mean, std = np.array(description.mean), np.array(description.std)
        images = images * (1 / (255 * std)).astype(np.float32) - (mean / std).astype(np.float32)
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are uint8, or floats that are already normalised, not {images.dtype}")
    if len(images) == 0:
        none = jax.ShapeDtypeStruct(images.shape, np.float32)
        return np.zeros(jax.eval_shape(compute, params, none).shape, np.float32)
    return np.asarray(compute(params, images.astype(np.float32)))


def _jit(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Compile `function` with float32 matrix products, also where the default is coarser (TPU, GPU)."""

    @jax.jit
    def compiled(*arguments: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return compiled
