"""Fine-tuned checkpoints as AIM, ST-Adapter and ZeroI2V write them, with random values.

Names and layouts are those of the methods' own code. `reference` gives the same tensors, by hand, to the
PyTorch references of the methods.
"""

import math
import re
import sys
import types
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch

from inti_jax.config.backbones import BackboneSize

# Of the checkpoints' image tower, which tests name `tiny`.
SIZE = BackboneSize(width=32, layers=2, heads=4, patch=8, resolution=16)

MEAN = np.array([122.769, 116.74, 104.04]) / 255
STD = np.array([68.493, 66.63, 70.321]) / 255

_ADAPTERS = {
    "aim": ("T_Adapter", "S_Adapter", "MLP_Adapter"),
    "aim_2": ("T_Adapter_in", "T_Adapter", "S_Adapter", "MLP_Adapter"),
    "zero_i2v": ("T_Adapter_in", "S_Adapter", "MLP_Adapter", "MLP_Adapter_out"),
    "st_mlp": ("adapter_pre_mlp",),
    "st_both": ("adapter_pre_attn", "adapter_pre_mlp"),
}
KINDS = tuple(_ADAPTERS)
_PLACES = {
    "aim": {"T_Adapter": "temporal_out", "S_Adapter": "attn_out", "MLP_Adapter": "mlp_beside"},
    "zero_i2v": {
        "T_Adapter_in": "attn_in",
        "S_Adapter": "attn_out",
        "MLP_Adapter": "mlp_in",
        "MLP_Adapter_out": "mlp_out",
    },
    "st_mlp": {"adapter_pre_mlp": "before_mlp"},
}
_PLACES["aim_2"] = {"T_Adapter_in": "temporal_in"} | _PLACES["aim"]
_PLACES["st_both"] = {"adapter_pre_attn": "before_attn"} | _PLACES["st_mlp"]


def shapes(
    kind: str,
    size: BackboneSize = SIZE,
    *,
    frames: int = 4,
    inner: int = 8,
    classes: int = 10,
) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint of this kind, under the names that its model has them."""
    width, tokens = size.width, math.prod(size.grid) + 1
    st_adapter = kind.startswith("st")
    found: dict[str, tuple[int, ...]] = {}
    if not st_adapter:
        found |= {
            "class_embedding": (width,),
            "positional_embedding": (tokens, width),
            "temporal_embedding": (1, frames, width),
            "conv1.weight": (width, 3, size.patch, size.patch),
            **_affine("ln_pre", (width,)),
        }
    for i in range(size.layers):
        block = f"transformer.resblocks.{i}"
        if not st_adapter:
            found |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                **_affine(f"{block}.attn.out_proj", (width, width)),
                **_affine(f"{block}.ln_1", (width,)),
                **_affine(f"{block}.mlp.c_fc", (4 * width, width)),
                **_affine(f"{block}.mlp.c_proj", (width, 4 * width)),
                **_affine(f"{block}.ln_2", (width,)),
            }
        for adapter in _ADAPTERS[kind]:
            first, last = ("fc1", "fc2") if st_adapter else ("D_fc1", "D_fc2")
            found |= _affine(f"{block}.{adapter}.{first}", (inner, width))
            if st_adapter:
                found |= _affine(f"{block}.{adapter}.conv", (inner, 1, 3, 1, 1))
            found |= _affine(f"{block}.{adapter}.{last}", (width, inner))
    if st_adapter:
        return found | _affine("fc", (classes, width))
    found |= _affine("ln_post", (width,))
    found = {f"backbone.{name}": shape for name, shape in found.items()}
    return found | _affine("cls_head.fc_cls", (classes, width))


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def tensors(kind: str, **sizes: Any) -> dict[str, torch.Tensor]:
    """Random tensors of these shapes, none of them at a neutral value."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes(kind, **sizes).items():
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(0.5 / np.sqrt(np.prod(shape[1:]) if name.endswith("weight") else 4))
        if ".ln_" in name and name.endswith("weight"):
            values += 1
        found[name] = torch.from_numpy(values)
    return found


def clip_tensors(**sizes: Any) -> dict[str, torch.Tensor]:
    """The image tower in AIM's checkpoint, under OpenAI's names."""
    return {
        name.replace("backbone.", "visual."): value
        for name, value in tensors("aim", **sizes).items()
        if not re.search("_Adapter|temporal|cls_head", name)
    }


def write(path: Path, kind: str, weights: dict[str, torch.Tensor]) -> Path:
    """Write the file as the method's own code does."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 3e-4}]}
    if kind.startswith("st"):
        torch.save({"model": weights, "optimizer": optimizer, "lr_sched": {}, "next_epoch": 12}, path)
    elif kind.startswith("aim"):
        meta = {"env_info": "sys.platform: linux", "config": "model = dict()\n", "epoch": 30}
        torch.save({"meta": meta, "state_dict": OrderedDict(weights), "optimizer": optimizer}, path)
    else:
        contents = {
            "meta": {"dataset_meta": {}, "seed": 1},
            "state_dict": OrderedDict(weights),
            "message_hub": {"log_scalars": OrderedDict({"train/lr": _HistoryBuffer()}), "runtime_info": {}},
            "optimizer": optimizer,
        }
        parts = _HistoryBuffer.__module__.split(".")
        modules = {
            name: types.ModuleType(name) for name in (".".join(parts[: i + 1]) for i in range(len(parts)))
        }
        vars(modules[_HistoryBuffer.__module__])["HistoryBuffer"] = _HistoryBuffer
        with mock.patch.dict(sys.modules, modules):
            torch.save(contents, path)
    return path


class _HistoryBuffer:
    """Stand in for mmengine's buffer of training figures, whose loading runs code."""

    loaded: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self._max_length = 1000
        self._log_history = np.arange(3.0)
        self._recent = deque([1.0, 2.0], maxlen=5)

    def __setstate__(self, state: Any) -> None:
        self.loaded.append(state)


_HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
_HistoryBuffer.__name__ = _HistoryBuffer.__qualname__ = "HistoryBuffer"
LOADED = _HistoryBuffer.loaded


def reference(
    kind: str, weights: dict[str, torch.Tensor], size: BackboneSize = SIZE
) -> dict[str, torch.Tensor]:
    """The tensors in float64, by the paths of the references; ST-Adapter's lack the tower."""
    found = {}
    for name, value in weights.items():
        value, parts = value.double(), name.removeprefix("backbone.").split(".")
        match parts:
            case ["transformer", "resblocks", i, module, *rest] if module in _PLACES[kind]:
                place = f"adapters.{i}.{_PLACES[kind][module]}"
                *layer, leaf = rest
                ours = {"fc1": "down", "fc2": "up", "conv": "conv"}[layer[0].removeprefix("D_")]
                if ours == "conv" and leaf == "weight":
                    value = value.flatten(1)  # [C, 3]
                found[f"{place}.{ours}.{_leaf(leaf)}"] = value.T if value.ndim == 2 else value
            case ["transformer", "resblocks", i, *rest]:
                path, value = _block(".".join(rest), value, size)
                found[f"tower.blocks.{i}.{path}"] = value
            case ["conv1", "weight"]:
                found["tower.patch_embed.kernel"] = value.permute(2, 3, 1, 0)
            case ["temporal_embedding"]:
                found["temporal.embedding"] = value[0]
            case ["ln_pre" | "ln_post" as norm, leaf]:
                found[f"tower.{norm}.{_leaf(leaf, norm=True)}"] = value
            case ["cls_head", "fc_cls", leaf] | ["fc", leaf]:
                found[f"head.{_leaf(leaf)}"] = value.T if value.ndim == 2 else value
            case [leaf]:
                found[f"tower.{leaf}"] = value
    return found


def _leaf(name: str, *, norm: bool = False) -> str:
    return name if name == "bias" else "scale" if norm else "kernel"


def _block(name: str, value: torch.Tensor, size: BackboneSize) -> tuple[str, torch.Tensor]:
    heads, per_head = size.heads, size.width // size.heads
    match name.split("."):
        case ["attn", "in_proj_weight"]:
            return "attn.qkv.kernel", value.T.reshape(size.width, 3, heads, per_head)
        case ["attn", "in_proj_bias"]:
            return "attn.qkv.bias", value.reshape(3, heads, per_head)
        case ["attn", "out_proj", "weight"]:
            return "attn.out.kernel", value.T.reshape(heads, per_head, size.width)
        case ["attn", "out_proj", "bias"]:
            return "attn.out.bias", value
        case ["mlp", layer, leaf]:
            ours = {"c_fc": "fc", "c_proj": "proj"}[layer]
            return f"mlp.{ours}.{_leaf(leaf)}", value.T if value.ndim == 2 else value
        case [norm, leaf]:
            return f"{norm}.{_leaf(leaf, norm=True)}", value
    raise ValueError(name)
