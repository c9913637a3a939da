"""The training step compiled by TPU's own compiler, and what is said where it cannot be."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from inti_jax.config import ConfigError, Mesh, Model
from inti_jax.cost import activations, topology
from inti_jax.distributed import sharding
from inti_jax.errors import UsageError
from inti_jax.host import chips
from inti_jax.models import freezing
from inti_jax.models.parameters import parameter_shapes
from inti_jax.runs import state
from inti_jax.training import optim
from tests import main_test
from tests.configs import record, tiny
from tests.main_test import CONFIG

# `plan` for a tiny model of two blocks, of which a program is compiled in seconds: once for each list of
# arguments, in one process, which imports JAX once.
SHALLOW = """
import contextlib, dataclasses, io, json, sys
from inti_jax import plan
from inti_jax.host.command import run_command
from inti_jax.config.backbones import BACKBONES
BACKBONES["tiny"] = dataclasses.replace(BACKBONES["tiny"], layers=2)
BACKBONES["clip_vit_b32"] = dataclasses.replace(BACKBONES["tiny"], layers=1, width=128, heads=2, patch=4)
common, *each = json.loads(sys.argv[1])
found = []
for arguments in each:
    sys.argv = ["plan", *common, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_command(plan.main)
    plan_found = json.loads(out.getvalue())
    found.append(plan_found["compile"] if "compile" in plan_found else plan_found["scaling"])
print(json.dumps(found))
"""
NONE = ("--config.model.compression.kind=none", "--config.model.compression.after=()")
TILES = (*NONE, "--config.model.backbone=clip_vit_b32")  # whose heads fill tiles
LORA = ("--config.model.adaptation=lora", "--config.model.pretrained=absent")


@pytest.fixture(scope="module")
def compiled():
    """The compiled steps of a few models; under `scaling`, the comparison of that of one on two slices."""
    steps = {
        "scaling": (*NONE, "--topology", "v5e:2x2,v5e:2x2*2", "--videos_per_chip", "8"),
        "inti": ("--config.mesh.fsdp=4", "--config.model.scan=on", "--config.model.remat=auto"),
        "crowded": (*NONE, "--config.train.global_batch=20480", "--config.model.remat=auto"),
        "lora": (*NONE, *LORA, "--config.model.scan=on"),
        "kernel": TILES,
        "no kernel": (*TILES, "--config.model.attention=xla"),
    }
    environment = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    common = ("--config", CONFIG, "--topology", "v5e:2x2", "--json")
    process = subprocess.run(
        [sys.executable, "-c", SHALLOW, json.dumps([common, *steps.values()])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    found = dict(zip(steps, json.loads(process.stdout), strict=True))
    return found | {"none": found["scaling"][0]["compiled"]}


def moved(found, *kinds):
    return sum(one["bytes"] for one in found["collectives"] if one["kind"] in kinds)


def test_the_json_has_what_the_compiler_says(compiled):
    for found in (compiled[name] for name in compiled if name != "scaling"):
        assert found["devices"] == 4 and found["hbm_gib"] == 16 and found["fits"] and not found["remedies"]
        assert 0 < found["state_gib"] < found["peak_hbm_gib"] < found["hbm_gib"]
        assert found["flops_per_device"] / found["bytes_per_device"] == found["arithmetic_intensity"] > 0
        bounds = found["roofline"]
        assert bounds["compute"] == found["flops_per_device"] / 197e12
        assert bounds["hbm"] == found["hbm_bytes_per_device"] / 819e9 > 0  # not of what stays in the chip
        assert bounds[bounds["binds"]] == max(bounds[key] for key in ("compute", "hbm", "interconnect"))
        assert found["collectives"] and found["seconds"] > 0
    assert compiled["none"]["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert compiled["inti"]["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}


def test_blocks_are_computed_again_only_where_the_step_would_not_fit(compiled):
    assert compiled["inti"]["fits"] and not compiled["inti"]["remat"]
    assert compiled["crowded"]["fits"] and compiled["crowded"]["remat"]


def test_compressed_frames_cost_less(compiled):
    none, inti = compiled["none"], compiled["inti"]
    for key in ("flops_per_device", "bytes_per_device"):
        assert 0.5 < inti[key] / none[key] < 0.95


def test_attention_in_a_kernel_accesses_less_for_the_same_operations(compiled):
    kernel, plain = compiled["kernel"], compiled["no kernel"]
    assert kernel["bytes_per_device"] < 0.8 * plain["bytes_per_device"]
    assert kernel["flops_per_device"] == pytest.approx(plain["flops_per_device"], rel=0.03)


def parameters(method):
    settings = tiny(model__adaptation=method, model__pretrained="random" if method == "full" else "absent")
    return parameter_shapes(state.abstract_model(record(settings)))


def test_gradients_of_what_trains_alone_are_exchanged(compiled, monkeypatch):
    from inti_jax.config.backbones import BACKBONES

    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=2))
    for name, method in (("none", "full"), ("lora", "lora")):
        shapes = parameters(method)
        trained = sum(4 * shapes[path].size for path in freezing.trained(Model(adaptation=method), shapes))
        # Besides gradients, a few numbers such as the loss.
        assert moved(compiled[name], "all-reduce", "reduce-scatter") == pytest.approx(trained, rel=0.01)
        assert moved(compiled[name], "all-gather", "all-to-all") == 0


def test_slices_exchange_each_gradient_once(compiled):
    one, two = compiled["scaling"]
    assert [(scale["compiled"]["devices"], scale["videos"]) for scale in (one, two)] == [(4, 8), (8, 8)]
    assert one["sent_between_slices"] == one["compiled"]["roofline"]["network"] == 0
    # A chip sends its quarter of what its slice has summed, padded to tiles.
    between = [traffic for traffic in two["compiled"]["collectives"] if traffic["between"] == "slices"]
    whole = 4 * sum(traffic["bytes"] for traffic in between)
    trained = moved(compiled["none"], "all-reduce", "reduce-scatter")
    assert trained <= whole < 1.2 * trained
    assert two["sent_between_slices"] == pytest.approx(whole / 4)
    seconds = two["sent_between_slices"] / 3.125e9
    assert two["compiled"]["roofline"]["network"] == pytest.approx(seconds)
    assert two["in_turn"] >= two["overlapped"] >= seconds and two["efficiency_in_turn"] < 1


def test_sliced_parameters_are_gathered_and_activations_are_not(compiled):
    whole = 4 * sum(shape.size for shape in parameters("full").values())
    found = compiled["inti"]
    assert 0 < moved(found, "all-gather") < 3 * whole
    assert found["state_gib"] < 0.4 * compiled["none"]["state_gib"]


# What cannot be compiled for.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("v9:4x4", "there is no such topology"),
        ("v5e", "there is no such topology"),
        ("v5e:4x4*0", "a slice of v5e has 2 dimensions"),
        ("v5e:4x4x4", "a slice of v5e has 2 dimensions"),
        ("v5e:32x32", "at most 256 chips"),
        ("v5p:4x4", "a slice of v5p has 3 dimensions"),
    ],
)
def test_a_topology_that_is_none_is_named_with_some_that_are(name, reason):
    with pytest.raises(UsageError, match=r"v5e:4x4 \(16 chips\)") as raised:
        topology.tpu_target(name)
    assert reason in str(raised.value) and "\n" not in str(raised.value)


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'inti_jax\[tpu\]'"):
        topology.tpu_target("v5e:2x2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--platform", "cuda"], "JAX finds no such device"),
        (["--platform", "cuda", "--topology", "v5e:2x2"], "exclude each other"),
        (["--topology", "v5e:3x3"], "not divisible"),
        (["--topology", "v5e:2x2", "--config.mesh.data=8"], "there are 4 devices"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message):
    process = main_test.start("plan", "--config", CONFIG, *arguments)
    assert process.returncode == 2 and process.stdout == ""
    assert message in process.stderr.strip().splitlines()[-1] and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("Ran out of memory in memory space hbm. Used 20.34G of 15.75G hbm. Exceeded", 20.34),
        ("the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).", 0.5),
        ("something else", None),
    ],
)
def test_what_was_asked_for_is_read_from_the_compilers_message(message, gib):
    found = topology._asked(message)
    assert found == (None if gib is None else gib * 2**30)


def test_remedies_are_those_that_apply_and_the_cheapest_comes_first():
    settings = tiny(
        model__adaptation="lora", model__pretrained="absent", train__global_batch=64, data__num_frames=16
    )
    run = record(settings)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:4])
    shapes = state.abstract_state(run, optim.make_optimizer(settings.train, 4)[0], mesh)
    model = state.abstract_model(run)
    found = topology._remedies(settings, model, mesh, shapes, 16.0)
    assert [remedy.partition("=")[0] for remedy in found[:-1]] == [
        "model.frozen_dtype",
        "train.dtype",
        "mesh.data",
        "train.accumulate",
        "model.remat",
    ]
    assert found[-1].startswith("a smaller train.global_batch")
    # As many parts as leave room, and no more; where there is none, as many as there are.
    saved = activations.saved(model, settings.model, 16)
    kept = 16 * (saved.embedding + sum(saved.blocks) + saved.head) / 2**30
    held = topology._bytes_of(shapes) / 2**30
    assert "accumulate=4 " in topology._remedies(settings, model, mesh, shapes, (held + kept / 3) / 0.8)[3]
    assert "accumulate=16 " in topology._remedies(settings, model, mesh, shapes, 1e-6)[3]
    sliced = tiny(model__remat=True, train__dtype="bfloat16", mesh__data=1, mesh__fsdp=-1)
    mesh = sharding.make_mesh(sliced.mesh, jax.devices()[:8])
    shapes = state.abstract_state(record(sliced), optim.make_optimizer(sliced.train, 4)[0], mesh)
    model = state.abstract_model(record(sliced))
    assert len(topology._remedies(sliced, model, mesh, shapes, 16.0)) == 1


# Chips and meshes.


@dataclasses.dataclass(frozen=True)
class Named:
    device_kind: str


def test_chips_are_known_by_what_jax_calls_them():
    assert chips.chip_of(Named("TPU v5 lite")) is chips.TPU_FAMILIES["v5e"]
    assert chips.chip_of(Named("NVIDIA H100 80GB HBM3")).name == "H100"
    assert chips.chip_of(jax.devices()[0]) is None


@dataclasses.dataclass(frozen=True)
class Sliced:
    """Of a device what decides its place in a mesh."""

    id: int
    slice_index: int
    coords: tuple[int, ...]
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def test_slices_are_put_along_the_axis_that_takes_them():
    devices = [Sliced(4 * s + i, s, (i % 2, i // 2, 0)) for s in range(3) for i in range(4)]
    placed = sharding._arranged((6, 2, 1), devices)
    assert [{device.slice_index for device in row.flat} for row in placed] == [{0}, {0}, {1}, {1}, {2}, {2}]
    placed = sharding._arranged((1, 12, 1), devices)
    assert [device.slice_index for device in placed.flat] == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(ConfigError, match="should be a multiple of 3"):
        sharding._arranged((2, 2, 3), devices)
