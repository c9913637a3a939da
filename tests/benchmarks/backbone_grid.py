"""Check every adaptation method with every compressor on every family of backbones, at tiny sizes.

    python -m tests.benchmarks.backbone_grid --out grid.jsonl

A combination has weights of its family, converted, and two blocks. It trains two steps: the losses are
finite, what the method trains moves, and nothing else. It is evaluated, saved and restored bit for bit. The
same steps over 8 simulated devices have the same losses. Where the method folds, the folded model gives the
same outputs. The plan's cost is that of all products that JAX traces, as trained and as folded, to the last.

Each combination is a line of FILE. The same command goes on where it was stopped, and repeats what failed.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.processes import environment

os.environ.update(environment(8))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from inti_jax.config import Config, Mesh
from inti_jax.config.backbones import (
    BACKBONES,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    OPENAI,
    SIGLIP,
    BackboneSize,
    Numerics,
)
from inti_jax.cost import plan
from inti_jax.distributed import sharding
from inti_jax.models.fold import fold
from inti_jax.runs import state
from inti_jax.runs.backbone import find_backbone
from tests import configs, methods_test
from tests.cost.compiled import products
from tests.models import fold_test, video_test
from tests.pretrained.weights import write_tiny

_GIANT = configs.FAMILIES["dinov2"]
_REGISTERS = _GIANT | {"gated": False}
# Changes of the tiny backbone that make it one of a family, and the numerics of its weights.
FAMILIES: dict[str, tuple[dict[str, Any], Numerics]] = {
    "clip": (configs.FAMILIES["clip"], OPENAI),
    "siglip": (configs.FAMILIES["siglip"], SIGLIP),
    "dinov2": (_REGISTERS | {"registers": 0}, DINOV2),
    "dinov2_registers": (_REGISTERS, DINOV2_WITH_REGISTERS),
    "dinov2_giant": (_GIANT, DINOV2_WITH_REGISTERS),
}
FRAMES, ST_WIDTH = 4, 16
SHARDED = Mesh(data=2, fsdp=2, tensor=2)
# How far losses on several devices may be from those on one, and a folded model's outputs from the model's,
# as a share of the largest: what rounding to float32 leaves.
TOLERANCE = 1e-5


def main() -> None:
    """Check what FILE does not have yet, then print a summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.backbone_grid")
    for name, known in (
        ("families", FAMILIES),
        ("methods", methods_test.METHODS),
        ("compressors", methods_test.COMPRESSIONS),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a JSON object a line")
    arguments = parser.parse_args()
    done = {_key(line): line for line in _read(arguments.out) if line["failure"] is None}
    wanted = [
        (family, method, compressor)
        for family in arguments.families
        for method in arguments.methods
        for compressor in arguments.compressors
    ]
    for family, method, compressor in wanted:
        if (family, method, compressor) in done:
            continue
        line = {"family": family, "method": method, "compressor": compressor} | _tried(
            family, method, compressor
        )
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done[_key(line)] = line
        print(_row(line), flush=True)
    lines = [done[each] for each in wanted]
    failed = [line for line in lines if line["failure"] is not None]
    good = [line for line in lines if line["failure"] is None]
    print(f"{len(good)} of {len(lines)} combinations are right")
    for name in ("sharded_gap", "folded_gap"):
        found = [line[name] for line in good if line[name] is not None]
        print(f"{name}: largest {max(found, default=0):.1e} of {len(found)}")
    for line in failed:
        print(_row(line))
    sys.exit(bool(failed))


def _key(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["family"], line["method"], line["compressor"]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # cut by a kill


def _row(line: dict[str, Any]) -> str:
    what = f"{line['family']:<17} {line['method']:<11} {line['compressor']:<7}"
    if line["failure"] is not None:
        return f"{what} FAILED: {line['failure'].strip().splitlines()[-1]}"
    folded = "" if line["folded_gap"] is None else f", folded {line['folded_gap']:.1e}"
    return f"{what} sharded {line['sharded_gap']:.1e}{folded}, {line['macs']} MACs, {line['seconds']:.0f} s"


def _tried(family: str, method: str, compressor: str) -> dict[str, Any]:
    started = time.monotonic()
    found: dict[str, Any] = {"losses": None, "sharded_gap": None, "folded_gap": None, "macs": None}
    failure = None
    changes, numerics = FAMILIES[family]
    size = dataclasses.replace(configs.SHALLOW, **changes)
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(BACKBONES, tiny=size):
        try:
            found |= check(Path(name), size, numerics, method, compressor)
        except Exception:  # a combination that fails is a result, and the others go on
            failure = traceback.format_exc()
    jax.clear_caches()
    return found | {"failure": failure, "seconds": time.monotonic() - started}


def check(
    directory: Path, size: BackboneSize, numerics: Numerics, method: str, compressor: str
) -> dict[str, Any]:
    """Check one combination below `directory` and return its figures. Raises where one is wrong."""
    weights = write_tiny(directory / "weights.safetensors", image=size, numerics=numerics)
    settings = methods_test.make_settings(weights, method, compressor, data__num_frames=FRAMES)
    assert settings.model.st_adapter.width == ST_WIDTH
    losses = methods_test.check(settings, directory / "run")
    sharded_gap = max(abs(a - b) for a, b in zip(_sharded(settings), losses, strict=True))
    assert sharded_gap <= TOLERANCE * max(losses), f"sharded losses differ by {sharded_gap}"
    macs = _costs(settings)
    return {
        "losses": losses,
        "sharded_gap": sharded_gap,
        "folded_gap": _folded(settings) if method in ("lora", "zero_i2v") else None,
        "macs": macs,
    }


def _sharded(settings: Config) -> list[float]:
    """The losses of the same steps over all devices."""
    step, current, *_, mesh = methods_test.start(settings, sharding.make_mesh(SHARDED))
    batch = methods_test.make_batch(mesh, settings.data)
    losses = []
    for _ in range(2):
        current, metrics = step(current, batch)
        losses.append(float(metrics["loss"]))
    return losses


def _folded(settings: Config) -> float:
    """Measure how far the folded model's outputs are from the model's, with no parameter at zero."""
    run = configs.record(settings, backbone=find_backbone(settings))
    model, folded = (state.abstract_model(run, folded=each) for each in (False, True))
    params = fold_test.random_params(model)
    video = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 32, 32, 3), np.uint8)
    outputs = fold_test.apply(model, params, jnp.asarray(video))
    found = fold_test.apply(folded, fold(settings.model, params), jnp.asarray(video))
    gap = float(np.abs(found - outputs).max() / np.abs(outputs).max())
    assert gap <= TOLERANCE, f"the folded model's outputs differ by {gap} of the largest"
    return gap


def _costs(settings: Config) -> int:
    """The multiply-accumulates of a view in training, where they are those that the plan tells."""
    run = configs.record(settings, backbone=find_backbone(settings))
    planned = plan.make_plan(run)[0]
    compression = settings.model.compression
    for folded, gmacs in ((False, planned.gmacs_per_view_training), (True, planned.gmacs_per_view)):
        graphdef, params = nnx.split(state.abstract_model(run, folded=folded))
        video = jax.ShapeDtypeStruct((1, FRAMES, 32, 32, 3), jnp.uint8)
        traced = products(
            lambda params, video, graphdef=graphdef: nnx.merge(graphdef, params)(video), params, video
        )
        tower = nnx.merge(graphdef, params).tower
        traced += video_test.elementwise(
            settings.model.adaptation,
            compression.kind,
            FRAMES,
            tower.tokens,
            tower.grid[0] * tower.grid[1],
            width=ST_WIDTH,
            merged=compression.r if compression.kind == "tome" else 0,
        )
        assert traced == round(gmacs * 1e9), f"{traced} are traced, {gmacs * 1e9} planned; {folded=}"
    return round(planned.gmacs_per_view_training * 1e9)


if __name__ == "__main__":
    main()
