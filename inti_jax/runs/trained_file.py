"""Read and write a small file of only what a run trained, pinned to its backbone and its labels.

It is a safetensors file of megabytes. Its metadata holds the run's record, with the content hash of the
converted CLIP that the run started from. The two files together are the whole model.

A file that was made from a published checkpoint may hold the image tower as well. It is then also the
converted CLIP that it goes on, and the whole model by itself.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import traverse_util

from inti_jax.config import TEMPORAL_OF, ConfigError, Model
from inti_jax.errors import UserError
from inti_jax.hub.names import HubName, Place
from inti_jax.models import freezing, parameters
from inti_jax.models.adaptation import has_temporal_embedding
from inti_jax.pretrained import file_kinds, from_hub
from inti_jax.pretrained.clip_file import FORMAT as CLIP_FORMAT
from inti_jax.pretrained.clip_file import (
    TOWER_HASH,
    TRAINED,
    Description,
    Index,
    to_metadata,
    write_safetensors,
)
from inti_jax.pretrained.lazy_array import LazyArray, held
from inti_jax.pretrained.sources import is_run
from inti_jax.runs import state
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord

FORMAT, VERSION = TRAINED, "1"
# The file in the directory of a shared model, where the Hub looks for weights.
SHARED = "model.safetensors"
_HOLDS = "holds"  # the key under which a file's metadata says that it has all parameters
_MAKES = "`python -m inti_jax.convert {} --to trained --out F.safetensors`"
_MEANT = f"give a file of the parameters that a run trained, which {_MAKES.format('RUN')} writes"
_TORCH = (
    ". Pass CLIP's weights as `model.pretrained` or to inti_jax.load_clip; convert a fine-tuned AIM, "
    "ST-Adapter or ZeroI2V with `python -m inti_jax.convert SRC --out F.safetensors --labels FILE`"
)

# Settings of the model that may differ from those in the file: the place of the weights, the layout of the
# computation, what trains, and what only training draws.
_FREE = (
    *("pretrained", "start_from", "frozen_dtype", "remat", "scan", "attention", "drop_path"),
    *("freeze", "freeze_blocks", "unfreeze_last"),
    *("head.dropout", "zero_i2v.dropout"),
)


def write(
    path: Path,
    record: RunRecord,
    params: Mapping[str, jax.Array],
    weights: Weights = "raw",
    *,
    whole: bool = False,
) -> str:
    """Write those of `params` that train, or with `whole` all, to `path`, and return their hash.

    `weights` says which weights of the run they are. The file appears at `path` only once it is complete.
    """
    trained = params.keys() if whole else freezing.trained(record.config.model, params)
    arrays = {name: held(np.asarray(params[name], np.float32)) for name in params if name in trained}
    return write_arrays(path, record, arrays, weights=weights, whole=whole)


def write_arrays(
    path: Path,
    record: RunRecord,
    arrays: Mapping[str, LazyArray],
    *,
    tower: Description | None = None,
    weights: Weights = "raw",
    whole: bool = False,
) -> str:
    """Write what trained, one array in memory at a time, and return the arrays' hash.

    With `tower`, the description of the image tower, `arrays` has all of the tower's parameters too, whose
    hash is the one in `record`. With `whole` it has all parameters of the model, as the run left them.
    """
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "record": json.dumps(record.to_json()),
    }
    if weights == "ema":
        metadata["weights"] = "ema"
    if whole:
        metadata[_HOLDS] = "all"
    if tower is not None:
        metadata |= {TOWER_HASH: str(record.backbone.sha256), **to_metadata(tower)}
    return write_safetensors(path, arrays, lambda digest: {**metadata, "hash": digest})


def locate(place: Place) -> Path:
    """Return the path of what may be such a file: in a shared model's directory, or downloaded from the Hub.

    A path that is no shared model is returned as it is. Raises UserError where the Hub has no such file.
    """
    if isinstance(place, HubName):
        return from_hub.fetch_file(place if place.file else dataclasses.replace(place, file=SHARED))
    if place.is_dir() and not is_run(place) and file_kinds.is_own(place / SHARED):
        return place / SHARED
    return place


def holds_tower(path: Path) -> bool:
    """Tell whether the file holds the image tower too, so that it is the whole model."""
    return TOWER_HASH in (_open(path).metadata() or {})


def is_whole(path: Path) -> bool:
    """Tell whether the file holds all parameters of the model, so that it needs no other weights."""
    return (_open(path).metadata() or {}).get(_HOLDS) == "all"


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
        raise UserError(f"{path} has damaged metadata: {_MAKES.format('RUN')} writes it anew") from None


def read_weights(path: Path) -> Weights:
    """Read which weights of its run the file holds. Raises UserError as `read_record` does."""
    return "ema" if (_open(path).metadata() or {}).get("weights") == "ema" else "raw"


def leaves(path: Path, record: RunRecord) -> dict[str, Callable[[Index], np.ndarray]]:
    """Map the path of each trained parameter to a function that reads it, or a slice of it.

    For a file that is whole these are all parameters. Raises UserError where the parameters are not those of
    `record`'s model.
    """
    file = _open(path)
    shapes = parameters.parameter_shapes(state.abstract_model(record))
    trained = frozenset(shapes) if is_whole(path) else freezing.trained(record.config.model, shapes)
    tower = {name for name in shapes if name.startswith("tower.")} if holds_tower(path) else set()
    expected = {name: shapes[name].shape for name in trained | tower}
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if found != expected:
        differs = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise UserError(
            f"{path} does not match the model that it states, see {', '.join(differs[:3])}: "
            f"{_MAKES.format('RUN')} writes it anew"
        )

    def read(name: str, index: Index) -> np.ndarray:
        try:
            return file.get_slice(name)[index] if index else file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged, get it again: {error}") from None

    return {name: functools.partial(read, name) for name in trained}


def check_fits(path: Path, theirs: RunRecord, ours: RunRecord) -> None:
    """Raise ConfigError where the file of `theirs` cannot start a run of `ours`.

    Both have to have the same model, on the same backbone, with the same labels in the same order.
    """
    size = theirs.backbone.size
    if theirs.backbone != dataclasses.replace(ours.backbone, size=size):
        raise ConfigError(
            f"{path} holds its own backbone: set `model.pretrained` to the same file"
            if holds_tower(path)
            else f"{path} was trained on the backbone {theirs.backbone.sha256}, but "
            f"{ours.config.model.pretrained} holds the backbone {ours.backbone.sha256}: set "
            "`model.pretrained` to the file that it was trained on"
        )
    for index, (label, here) in enumerate(zip(theirs.dataset.labels, ours.dataset.labels, strict=False)):
        if label != here:
            raise ConfigError(
                f"{path} was trained on other labels: class {index} is `{label}` there, and `{here}` in "
                f"{ours.dataset.name}: prepare the dataset with --labels in the order of that run's"
            )
    if len(theirs.dataset.labels) != len(ours.dataset.labels):
        raise ConfigError(
            f"{path} was trained on {len(theirs.dataset.labels)} labels, and {ours.dataset.name} has "
            f"{len(ours.dataset.labels)}: both runs should have the same labels"
        )
    expected, found = _settings(theirs.config.model), _settings(ours.config.model)
    if size.alike(ours.backbone.size):  # one of them may be "auto"
        found["backbone"] = expected["backbone"]
    for key in [*expected, *(key for key in found if key not in expected)]:
        if expected.get(key) != found.get(key):
            raise ConfigError(
                f"{path} has another model: its `model.{key}` is {expected.get(key)}, here it is "
                f"{found.get(key)}: set it to the same"
            )
    # Trained parameters with a vector for each frame, or for each patch.
    sized = []
    if has_temporal_embedding(theirs.config.model):
        sized.append("num_frames")
    if freezing.trains(theirs.config.model, "tower.positional_embedding", size.layers):
        sized.append("resolution")
    for key in sized:
        size, ours_size = getattr(theirs.config.data, key), getattr(ours.config.data, key)
        if size != ours_size:
            raise ConfigError(
                f"{path} has an embedding for `data.{key}` = {size}, here it is {ours_size}: set it to {size}"
            )


def _settings(model: Model) -> dict[str, Any]:
    """Give the settings that say what the model computes, by key, without those that it does not read."""
    temporal = {TEMPORAL_OF.get(model.adaptation), model.temporal}
    unread = {
        *_FREE,
        *(section for section, module in TEMPORAL_OF.items() if module not in temporal),
        *(() if model.adaptation == "lora" else ("lora",)),
    }
    values = {key: value for key, value in dataclasses.asdict(model).items() if key not in unread}
    if model.compression.kind == "none":
        values["compression"] = {"kind": "none"}
    flat = traverse_util.flatten_dict(values, sep=".")
    return {key: value for key, value in flat.items() if key not in _FREE}


def _open(path: Path) -> safetensors.safe_open:
    """Open a safetensors file. Raises UserError where `path` is anything else, or is damaged."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: {_MAKES.format(path)} writes the file to give")
    if what := file_kinds.no_safetensors(path):
        raise UserError(f"{path} is {what}; {_MEANT}{_TORCH if 'torch' in what else ''}")
    try:
        return safetensors.safe_open(path, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged, truncated or not a safetensors file: {error}; {_MEANT}"
        ) from None
