"""Make the settings of Hugging Face's models for our architectures: config.json, preprocessor_config.json."""

from typing import Any

from inti_jax.config.backbones import BackboneSize
from inti_jax.models.clip import Architecture
from inti_jax.models.text import TextSize
from inti_jax.models.tokenizer import END, START, Vocabulary
from inti_jax.pretrained.clip_file import Description


def config(description: Description) -> dict[str, Any]:
    """Make the config.json of the model in transformers that computes the same."""
    architecture = description.architecture
    image, text = architecture.image, architecture.text
    if image.layer_scale:
        return dinov2(architecture)
    if architecture.sigmoid:
        return siglip(architecture)
    common = {
        "hidden_act": architecture.numerics.activation,
        "layer_norm_eps": architecture.numerics.eps,
        "projection_dim": architecture.embed or image.width,
    }
    vision = {
        **_vision_sizes(image),
        **common,
    }
    if text is None:
        kind = "CLIPVisionModel" if architecture.embed is None else "CLIPVisionModelWithProjection"
        return {"architectures": [kind], "model_type": "clip_vision_model", **vision}
    vocabulary, end = description.vocabulary, text.end_token or text.vocabulary - 1
    tokens = vocabulary.tokens if isinstance(vocabulary, Vocabulary) else None
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture.embed,
        "vision_config": {"model_type": "clip_vision_model", **vision},
        "text_config": {
            "model_type": "clip_text_model",
            **_text_sizes(text),
            # Without a vocabulary, as in OpenAI's: just before the end token.
            "bos_token_id": tokens.index(START) if tokens else end - 1,
            "eos_token_id": tokens.index(END) if tokens else end,
            "pad_token_id": end,
            **common,
        },
    }


def preprocessor(description: Description) -> dict[str, Any]:
    """Make the preprocessor_config.json: resolution and pixel statistics."""
    image = description.architecture.image
    resolution = _side(image)
    if description.architecture.sigmoid:  # the whole picture, whatever its shape
        return {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": resolution, "width": resolution},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": description.mean,
            "image_std": description.std,
            "do_convert_rgb": True,
        }
    return {
        "image_processor_type": "BitImageProcessor" if image.layer_scale else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resolution},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": resolution, "width": resolution},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": description.mean,
        "image_std": description.std,
        "do_convert_rgb": True,
    }


def _side(image: BackboneSize) -> int:
    """Give the side of the square images, in pixels."""
    return image.height_width[0]


def dinov2(architecture: Architecture) -> dict[str, Any]:
    """Make the config.json of a DINOv2."""
    image = architecture.image
    kind: dict[str, Any] = {"architectures": ["Dinov2Model"], "model_type": "dinov2"}
    if image.registers:
        kind = {
            "architectures": ["Dinov2WithRegistersModel"],
            "model_type": "dinov2_with_registers",
            "num_register_tokens": image.registers,
        }
    # With SwiGLU the library takes two thirds of mlp_ratio * width, rounded up to a multiple of 8.
    ratio = 4 if image.gated else image.mlp_width / image.width
    return {
        **kind,
        "hidden_size": image.width,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "use_swiglu_ffn": image.gated,
        "patch_size": image.patch,
        "image_size": _side(image),
        "hidden_act": architecture.numerics.activation,
        "layer_norm_eps": architecture.numerics.eps,
    }


def _vision_sizes(image: BackboneSize) -> dict[str, int]:
    """Give the sizes of the image tower by the keys that transformers' CLIP and SigLIP share."""
    return {
        "hidden_size": image.width,
        "intermediate_size": image.mlp_width,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "patch_size": image.patch,
        "image_size": _side(image),
        "num_channels": 3,
    }


def _text_sizes(text: TextSize) -> dict[str, int]:
    """Give the sizes of the text tower by the keys that transformers' CLIP and SigLIP share."""
    return {
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
    }


def siglip(architecture: Architecture) -> dict[str, Any]:
    """Make the config.json of a SigLIP."""
    image, text = architecture.image, architecture.text
    common = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": architecture.numerics.eps}
    vision = {
        "model_type": "siglip_vision_model",
        **_vision_sizes(image),
        **common,
    }
    if text is None:
        return {"architectures": ["SiglipVisionModel"], **vision}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": vision,
        "text_config": {
            "model_type": "siglip_text_model",
            **_text_sizes(text),
            "projection_size": architecture.embed,
            **common,
        },
    }
