"""Make a file of what a published method trained from its own fine-tuned checkpoint.

It is the file of `trained_file`. AIM's and ZeroI2V's checkpoints hold the image tower, and so do their files.
ST-Adapter's goes on a converted CLIP, whose hash it notes.
"""

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

from inti_jax import config
from inti_jax.config import Config
from inti_jax.config.backbones import AUTO, Backbone, BackboneSize, name_of
from inti_jax.data.builders.annotations import check_label, read_labels
from inti_jax.errors import UsageError, UserError
from inti_jax.models import freezing, parameters
from inti_jax.pretrained import matching
from inti_jax.pretrained.clip_file import content_hash
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.lazy_array import LazyArray
from inti_jax.pretrained.peers import methods
from inti_jax.pretrained.peers.methods import Found
from inti_jax.runs import state, trained_file
from inti_jax.runs.backbone import find_backbone
from inti_jax.runs.record import Dataset, RunRecord


@dataclasses.dataclass(frozen=True)
class Given:
    """The settings that a user gives, since tensors do not tell them; None for those not given."""

    frames: int | None = None
    sampling: str | None = None  # "uniform" or "dense:STRIDE"
    scale: float | None = None
    shifts: str | None = None  # pairs of (offset, heads), as a Python literal


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result: the record and the arrays in the file, and their hash."""

    record: RunRecord
    arrays: dict[str, LazyArray]
    hash: str


def convert(found: Found, out: Path, labels: Path, given: Given, pretrained: Path | None) -> Conversion:
    """Convert the checkpoint `found` to the file `out`, one array in memory at a time.

    Each line of `labels` is the name of a class, in the order of the classifier. `pretrained` is the
    converted CLIP that the method goes on, for a checkpoint without its tower. Raises UsageError for a
    setting that is missing or wrong, UserError where the checkpoint, the labels or the CLIP do not fit; then
    nothing is written.
    """
    path, title = found.matched.path, found.method.title
    if found.method.has_tower and pretrained is not None:
        raise UsageError(f"{path} is a fine-tuned {title} with its own backbone: leave out --pretrained")
    if not found.method.has_tower and pretrained is None:
        raise UsageError(
            f"{path} is a fine-tuned {title} without its backbone: give that, converted, with --pretrained "
            "F.safetensors (OpenAI's ViT-B/16 for the published ones)"
        )
    methods.check_asked(found, dataclasses.asdict(given))
    dataset = Dataset(labels.stem, "unknown", "unknown", _labels(labels, found))
    record = describe(found, dataset, given, pretrained or out)
    arrays = parameters_of(found, record)
    tower = None
    if found.method.has_tower:
        tower = found.describe()
        digest = content_hash({name: array for name, array in arrays.items() if name.startswith("tower.")})
        record = dataclasses.replace(record, backbone=dataclasses.replace(record.backbone, sha256=digest))
    return Conversion(record, arrays, trained_file.write_arrays(out, record, arrays, tower=tower))


def describe(found: Found, dataset: Dataset, given: Given, pretrained: Path) -> RunRecord:
    """Describe the model as the run that trained it would be.

    `pretrained` is the file that has the image tower, or will have it; then its hash is left out.
    """
    if found.method.has_tower:
        tower = found.describe()
        image = tower.architecture.image
        settings = _config(found, given, image, dataset.name, pretrained)
        backbone = Backbone(image, tower.architecture.numerics, tower.mean, tower.std)
        return RunRecord(settings, dataset, backbone)
    image = open_converted(pretrained).description.architecture.image
    if (image.width, image.layers) != (found.width, found.layers):
        raise UserError(
            f"{found.matched.path} is for a backbone of width {found.width} with {found.layers} layers, but "
            f"{pretrained} has width {image.width} and {image.layers} layers"
        )
    settings = _config(found, given, image, dataset.name, pretrained)
    return RunRecord(settings, dataset, find_backbone(settings))


def parameters_of(found: Found, record: RunRecord) -> dict[str, LazyArray]:
    """Give the parameters that the checkpoint has of the model of `record`, as lazy arrays by our path.

    Raises a UserError that names every kind of mismatch, as `matching.fill`.
    """
    shapes = parameters.parameter_shapes(state.abstract_model(record))
    held = shapes if found.method.has_tower else freezing.trained(record.config.model, shapes)
    return matching.fill(found.matched, {name: shapes[name].shape for name in shapes if name in held})


def _labels(path: Path, found: Found) -> tuple[str, ...]:
    """Read the labels. Raises UserError where they are not as many as the checkpoint has classes."""
    labels = read_labels(path)
    for label in labels:
        check_label(label, str(path))
    if len(labels) != found.classes:
        raise UserError(
            f"--labels {path} has {len(labels)} labels, but {found.matched.path} has {found.classes} classes"
        )
    return labels


def _config(found: Found, given: Given, image: BackboneSize, dataset: str, pretrained: Path) -> Config:
    """Make the config of the model, with the published views in evaluation.

    What only training reads has its defaults; one step is the length that a config has to have.
    """
    adaptation = found.method.adaptation
    section: dict[str, Any] = found.settings
    if given.scale is not None:
        if not (math.isfinite(given.scale) and given.scale > 0):
            raise UsageError(f"--scale is {given.scale}: it should be a positive number")
        section["scale"] = given.scale
    if given.shifts is not None:
        section["shifts"] = _shifts(given.shifts)
    frames = found.frames if given.frames is None else given.frames
    sampling, stride = _sampling(str(given.sampling))
    values = config.defaults()
    values.update_from_flattened_dict(
        {
            "model.backbone": name_of(image) or AUTO,
            "model.pretrained": str(pretrained),
            "model.adaptation": adaptation,
            "data.name": dataset,
            "data.data_dir": "data",
            "data.num_frames": frames,
            "data.sampling": sampling,
            "data.stride": stride,
            "data.resolution": image.resolution,
            "train.steps": 1,
            "eval.clips": 3 if sampling == "dense" else 1,
            "eval.crops": 1 if sampling == "dense" else 3,
        }
        | {f"model.{adaptation}.{key}": value for key, value in section.items()}
    )
    return config.from_dict(values.to_dict(), image)


def _shifts(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = ast.literal_eval(text)
        shifts = tuple((offset, heads) for offset, heads in pairs)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        shifts = ()
    if not shifts or not all(type(number) is int for pair in shifts for number in pair):
        raise UsageError(
            f"--shifts is {text!r}: it should be pairs of an offset in frames and the heads that it moves, "
            "such as ((-1,1),(1,1))"
        )
    return shifts


def _sampling(text: str) -> tuple[str, int]:
    """Read `uniform` or `dense:STRIDE`; give the kind, and the stride, which is 1 for `uniform`."""
    kind, _, stride = text.partition(":")
    if text == "uniform":
        return kind, 1
    if kind == "dense" and stride.isascii() and stride.isdecimal() and int(stride) > 0:
        return kind, int(stride)
    raise UsageError(f"--sampling is {text!r}: it should be uniform, or dense:STRIDE such as dense:16")
