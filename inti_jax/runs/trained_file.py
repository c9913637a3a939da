"""Read and write a small file of only what a run trained, pinned to its backbone and its labels.

It is a safetensors file of megabytes. Its metadata holds the run's record, with the content hash of the
converted CLIP that the run started from. The two files together are the whole model.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors

from inti_jax.config import ConfigError
from inti_jax.errors import UserError
from inti_jax.models import freezing, parameters
from inti_jax.pretrained import file_kinds
from inti_jax.pretrained.clip_file import FORMAT as CLIP_FORMAT
from inti_jax.pretrained.clip_file import Index, write_safetensors
from inti_jax.pretrained.lazy_array import held
from inti_jax.runs import state
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord

FORMAT, VERSION = "inti_jax.trained", "1"
_MAKES = "`python -m inti_jax.convert {} --to trained --out F.safetensors`"
_MEANT = f"give a file of the parameters that a run trained, which {_MAKES.format('RUN')} writes"

# Settings of the model that may differ from those in the file.
_FREE = (
    *("pretrained", "start_from", "frozen_dtype", "remat", "scan", "drop_path"),
    *("freeze", "freeze_blocks", "unfreeze_last"),
)


def write(path: Path, record: RunRecord, params: Mapping[str, jax.Array], weights: Weights = "raw") -> str:
    """Write those of `params` that train to `path`, and return their hash.

    `weights` says which weights of the run they are. The file appears at `path` only once it is complete.
    """
    trained = freezing.trained(record.config.model, params)
    arrays = {name: held(np.asarray(params[name], np.float32)) for name in params if name in trained}
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "record": json.dumps(record.to_json()),
    }
    if weights == "ema":
        metadata["weights"] = "ema"
    return write_safetensors(path, arrays, lambda digest: {**metadata, "hash": digest})


def read_record(path: Path) -> RunRecord:
    """Read the record of the run that trained what the file holds.

    Raises UserError where the file is damaged, or is of another kind.
    """
    metadata = _open(path).metadata() or {}
    if metadata.get("format") == CLIP_FORMAT:
        raise UserError(
            f"{path} is a converted CLIP, which has no trained classifier: train a run with "
            "`model.pretrained`, or load it with inti_jax.load_clip"
        )
    if metadata.get("format") != FORMAT or metadata.get("format_version") != VERSION:
        raise UserError(
            f"{path} does not hold the parameters that a run trained: {_MAKES.format('RUN')} writes such a "
            "file"
        )
    try:
        return RunRecord.from_json(json.loads(metadata["record"]), path)
    except (KeyError, ValueError):
        raise UserError(f"{path} has damaged metadata") from None


def read_weights(path: Path) -> Weights:
    """Read which weights of its run the file holds. Raises UserError as `read_record` does."""
    return "ema" if (_open(path).metadata() or {}).get("weights") == "ema" else "raw"


def leaves(path: Path, record: RunRecord) -> dict[str, Callable[[Index], np.ndarray]]:
    """Map the path of each trained parameter to a function that reads it, or a slice of it.

    Raises UserError where the parameters are not those of `record`'s model.
    """
    file = _open(path)
    shapes = parameters.parameter_shapes(state.abstract_model(record))
    trained = freezing.trained(record.config.model, shapes)
    expected = {name: shapes[name].shape for name in trained}
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if found != expected:
        differs = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise UserError(f"{path} does not match the model that it states: see {', '.join(differs[:3])}")

    def read(name: str, index: Index) -> np.ndarray:
        try:
            return file.get_slice(name)[index] if index else file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    return {name: functools.partial(read, name) for name in found}


def check_fits(path: Path, theirs: RunRecord, ours: RunRecord) -> None:
    """Raise ConfigError where the file of `theirs` cannot start a run of `ours`.

    Both have to have the same model, on the same backbone, with the same labels in the same order.
    """
    if theirs.backbone != ours.backbone:
        raise ConfigError(
            f"{path} was trained on the backbone {theirs.backbone.sha256}, but "
            f"{ours.config.model.pretrained} holds the backbone {ours.backbone.sha256}"
        )
    for index, (label, here) in enumerate(zip(theirs.dataset.labels, ours.dataset.labels, strict=False)):
        if label != here:
            raise ConfigError(
                f"{path} was trained on other labels: class {index} is `{label}` there, and `{here}` in "
                f"{ours.dataset.name}"
            )
    if len(theirs.dataset.labels) != len(ours.dataset.labels):
        raise ConfigError(
            f"{path} was trained on {len(theirs.dataset.labels)} labels, and {ours.dataset.name} has "
            f"{len(ours.dataset.labels)}"
        )
    for field in dataclasses.fields(ours.config.model):
        # The place of the weights, the layout of the computation and what else trains may differ.
        if field.name in _FREE:
            continue
        there, here = (getattr(record.config.model, field.name) for record in (theirs, ours))
        if there != here:
            raise ConfigError(
                f"{path} has another model: its `model.{field.name}` is {there}, here it is {here}"
            )


def _open(path: Path) -> safetensors.safe_open:
    """Open a safetensors file. Raises UserError where `path` is anything else, or is damaged."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: {_MAKES.format(path)} writes the file to give")
    if what := file_kinds.no_safetensors(path):
        raise UserError(
            f"{path} is {what}; {_MEANT}"
            + (
                ". Pass CLIP's weights as `model.pretrained` or to inti_jax.load_clip"
                if "torch" in what
                else ""
            )
        )
    try:
        return safetensors.safe_open(path, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged, truncated or not a safetensors file: {error}; {_MEANT}"
        ) from None
