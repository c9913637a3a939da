"""Export our parameters as OpenAI's state dict or a Hugging Face directory, bit for bit."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inti_jax.config.backbones import BackboneSize
from inti_jax.distributed import sharding
from inti_jax.errors import UsageError, UserError
from inti_jax.models.clip import Architecture
from inti_jax.models.pieces import Pieces
from inti_jax.models.text import TextSize
from inti_jax.models.tokenizer import END, START, Vocabulary
from inti_jax.pretrained import clip_rules
from inti_jax.pretrained.clip_file import Description, replacing, write_safetensors
from inti_jax.pretrained.lazy_array import LazyArray, held
from inti_jax.runs import checkpoint, trained
from inti_jax.runs.evaluations import Weights


def export(arrays: Mapping[str, LazyArray], description: Description, naming: str, out: Path) -> int:
    """Write the parameters for `naming`, "openai" or "huggingface"; return the number of arrays.

    `out` is a `.safetensors` or `.pt` file for OpenAI's naming, and a new directory for Hugging Face's. An
    image tower without a text tower is enough. Raises UserError for parameters that have no name there, such
    as compressors, and for Hugging Face where images are not square, and UsageError where `out` has another
    suffix or the directory exists.
    """
    theirs = clip_rules.to_theirs(arrays, _naming(description.architecture, naming))
    if naming == "huggingface":
        _check_square(description.architecture, out)
        _write_directory(theirs, description, out)
    elif out.suffix == ".safetensors":
        write_safetensors(out, theirs, lambda _: {"format": "pt"})
    elif out.suffix == ".pt":
        _write_torch(theirs, out)
    else:
        raise UsageError(f"--out {out}: name a .safetensors or .pt file, for OpenAI's naming")
    return len(theirs)


def read_run(
    workdir: Path, step: checkpoint.Step = None, weights: Weights | None = None
) -> tuple[dict[str, LazyArray], Description, list[str]]:
    """Read the image tower that a run trained, its description, and the names of parameters left out.

    Reads the newest checkpoint, or that of `step`, and of that the `weights` as `trained.load` does. Folds
    into the tower what can be folded. Where the classifier started from class names, its projection is CLIP's
    visual projection and is included. Raises UserError where `workdir` holds no finished checkpoint, or not
    these weights.
    """
    found = trained.load(workdir, sharding.one_device_mesh(), step=step, weights=weights)
    record, (_, params) = found.record, found.for_inference()
    backbone = record.backbone
    image = dataclasses.replace(backbone.size, resolution=record.config.data.resolution)
    architecture = Architecture(image, backbone.embed, None, backbone.numerics)
    names = {path: path for path in params if clip_rules.is_parameter(path)}
    if backbone.embed is not None and not architecture.sigmoid:
        names["head.projection.kernel"] = "projection.kernel"
    arrays = {name: held(np.asarray(params[path], np.float32)) for path, name in names.items()}
    description = Description(architecture, backbone.mean, backbone.std)
    return arrays, description, sorted(params.keys() - names.keys())


def _write_torch(arrays: Mapping[str, LazyArray], out: Path) -> None:
    try:
        import torch
    except ImportError:
        raise UserError(
            f'writing {out} needs torch: pip install "inti_jax[convert]", or write .safetensors'
        ) from None
    # Contiguous, because OpenAI's loader takes the arrays as they come.
    weights = {name: torch.from_numpy(np.array(array.read(), order="C")) for name, array in arrays.items()}
    with replacing(out) as temporary:
        torch.save(weights, temporary)


def _write_directory(arrays: Mapping[str, LazyArray], description: Description, out: Path) -> None:
    if out.exists():
        raise UsageError(f"--out {out} exists: name a directory that does not")
    files = {"config.json": _config(description), "preprocessor_config.json": _preprocessor(description)}
    with replacing(out) as directory:
        directory.mkdir()
        write_safetensors(directory / "model.safetensors", arrays, lambda _: {"format": "pt"})
        if isinstance(description.vocabulary, Pieces):
            (directory / "tokenizer.json").write_text(description.vocabulary.json, encoding="utf-8")
            files["tokenizer_config.json"] = {
                "tokenizer_class": description.vocabulary.library_class,
                "model_max_length": description.architecture.text and description.architecture.text.context,
            }
        elif description.vocabulary is not None:
            tokens, merges = description.vocabulary.tokens, description.vocabulary.merges
            files["vocab.json"] = {token: index for index, token in enumerate(tokens)}
            files["tokenizer_config.json"] = {"tokenizer_class": "CLIPTokenizer"}
            (directory / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")), encoding="utf-8")
        for name, values in files.items():
            (directory / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


def _check_square(architecture: Architecture, out: Path) -> None:
    """Raise UserError where images are not square: transformers keeps the positions of a square grid."""
    image = architecture.image
    height, width = image.height_width
    if height != width:
        clip = not (architecture.sigmoid or image.layer_scale)
        other = "--to openai writes them for open_clip" if clip else "only this project's own files hold them"
        raise UserError(
            f"{out}: the model has positions for {height} x {width} pixels, and Hugging Face's models have "
            f"them for squares: {other}"
        )


def _side(image: BackboneSize) -> int:
    """Give the side of the square images, in pixels."""
    return image.height_width[0]


def _naming(architecture: Architecture, naming: str) -> clip_rules.Naming:
    """Select the rules: Hugging Face has its own names for DINOv2 and SigLIP."""
    if naming == "huggingface" and architecture.sigmoid:
        return clip_rules.SIGLIP
    if naming == "huggingface" and architecture.image.layer_scale:
        return clip_rules.DINOV2_GATED if architecture.image.gated else clip_rules.DINOV2
    return clip_rules.NAMINGS[naming]


def _dinov2_config(architecture: Architecture) -> dict[str, Any]:
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


def _siglip_config(architecture: Architecture) -> dict[str, Any]:
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


def _config(description: Description) -> dict[str, Any]:
    architecture = description.architecture
    image, text = architecture.image, architecture.text
    if image.layer_scale:
        return _dinov2_config(architecture)
    if architecture.sigmoid:
        return _siglip_config(architecture)
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


def _preprocessor(description: Description) -> dict[str, Any]:
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
