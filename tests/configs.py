"""Small configurations for tests."""

import dataclasses
from typing import Any

from inti_jax import config
from inti_jax.config.backbones import BACKBONES, Backbone, published
from inti_jax.runs.record import Dataset, RunRecord


def tiny(data_dir: Any = "data", **changes: Any) -> config.Config:
    """A tiny model on motion_digits for a few steps; `changes` are `section__key=value`."""
    values = config.defaults().to_dict()
    flat = {
        "model__pretrained": "random",
        "data__name": "motion_digits",
        "data__data_dir": str(data_dir),
        "data__stride": 2,
        "data__resolution": 32,
        "train__global_batch": 8,
        "train__steps": 4,
        "train__log_every_steps": 1,
        "eval__batch": 8,
        "checkpoint__every_steps": 2,
    }
    for path, value in (flat | changes).items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return config.from_dict(values)


def record(settings: config.Config, classes: int = 10, backbone: Backbone | None = None) -> RunRecord:
    """The record of a run on a dataset of that many classes."""
    backbone = backbone or published(settings.model.backbone)
    labels = tuple(f"class {k}" for k in range(classes))
    return RunRecord(settings, Dataset("motion_digits", "1.0.0", "0", labels), backbone)


# `tiny` with one block before what compresses and one behind it. Deeper models compile longer.
SHALLOW = dataclasses.replace(BACKBONES["tiny"], layers=2)

# Changes of a backbone's size, by the number of tokens before its patches. Without a class token the feature
# is the mean of the patches; registers are beside it.
PREFIXES: dict[int, dict[str, Any]] = {
    0: {"class_token": False, "pooling": "patches"},
    1: {},
    5: {"registers": 4},
}

# Changes that make a backbone one of another family; "dinov2" is like its largest size, with registers.
FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip_wide_mlp": {"mlp": 416},
    "patches": PREFIXES[0],
    "dinov2": {
        "registers": 4,
        "mlp": 128,
        "gated": True,
        "layer_scale": True,
        "pre_norm": False,
        "patch_bias": True,
    },
    "siglip": {
        "class_token": False,
        "pooling": "attention",
        "mlp": 368,
        "pre_norm": False,
        "patch_bias": True,
    },
}

INTI = {"model__compression__kind": "inti", "model__compression__after": (1,)}


def replace_eval(settings: config.Config, **changes: Any) -> config.Config:
    return dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, **changes))
