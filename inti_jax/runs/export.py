"""Export our parameters as OpenAI's state dict or a Hugging Face directory, bit for bit."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from inti_jax.distributed import sharding
from inti_jax.errors import UsageError, UserError
from inti_jax.models.clip import Architecture
from inti_jax.models.pieces import Pieces
from inti_jax.pretrained import clip_rules, hf_settings, matching
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
    theirs = matching.to_theirs(arrays, _naming(description.architecture, naming))
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
    files = {
        "config.json": hf_settings.config(description),
        "preprocessor_config.json": hf_settings.preprocessor(description),
    }
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


def _naming(architecture: Architecture, naming: str) -> clip_rules.Naming:
    """Select the rules: Hugging Face has its own names for DINOv2 and SigLIP."""
    if naming == "huggingface" and architecture.sigmoid:
        return clip_rules.SIGLIP
    if naming == "huggingface" and architecture.image.layer_scale:
        return clip_rules.DINOV2_GATED if architecture.image.gated else clip_rules.DINOV2
    return clip_rules.NAMINGS[naming]
