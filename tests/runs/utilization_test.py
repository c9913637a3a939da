"""The multiply-accumulates of a training step, against XLA's count, and what comes of them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from inti_jax.config.backbones import BACKBONES
from inti_jax.host import memory
from inti_jax.models import freezing, parameters
from inti_jax.runs import state, utilization
from tests.configs import record, tiny

FRAMES = 4


@pytest.fixture
def nothing_twice(monkeypatch):
    """What is computed again to save memory is no part of what a step needs."""
    monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)


def settings_of(method, kind, changes, name="clip_vit_b16"):
    """B/16, of which three blocks are left in these tests."""
    after = () if kind in ("none", "tome") else (2,)
    return tiny(
        model__backbone=name,
        model__adaptation=method,
        model__pretrained="elsewhere.safetensors",
        model__compression__kind=kind,
        model__compression__after=after,
        data__resolution=224,
        data__num_frames=FRAMES,
        **changes,
    )


def counted(model, settings):
    """XLA's count for the loss and its gradient, of the module before compilation."""
    graphdef, params = nnx.graphdef(model), parameters.parameter_shapes(model)
    names = freezing.trained(settings, params)
    trained = {path: shape for path, shape in params.items() if path in names}
    frozen = {path: shape for path, shape in params.items() if path not in trained}
    video = jax.ShapeDtypeStruct((1, FRAMES, *model.size.height_width, 3), jnp.uint8)

    def loss(trained, frozen, video):
        return parameters.merge(graphdef, {**trained, **frozen})(video).sum()

    step = jax.jit(jax.value_and_grad(loss))
    return step.lower(trained, frozen, video).cost_analysis()["flops"] / 2


@pytest.mark.parametrize(
    ("method", "kind", "changes"),
    [
        ("full", "none", {}), ("full", "inti", {}), ("linear", "inti", {}), ("linear", "none", {}),
        ("aim", "mean", {}), ("st_adapter", "inti", {}), ("zero_i2v", "tome", {}), ("lora", "static", {}),
        ("lora", "none", {}), ("full", "none", {"model__freeze_blocks": 2}),
        ("linear", "inti", {"model__unfreeze_last": 1}), ("lora", "none", {"model__unfreeze_last": 2}),
        ("full", "none", {"model__freeze": ("tower.blocks.*.mlp", "tower.patch_embed")}),
    ],
)  # fmt: skip
def test_a_step_costs_what_xla_counts(method, kind, changes, monkeypatch, nothing_twice):
    check("clip_vit_b16", method, kind, changes, monkeypatch)


@pytest.mark.parametrize(
    ("method", "kind", "changes"),
    [
        ("full", "inti", {}), ("linear", "none", {}), ("linear", "inti", {}), ("aim", "tome", {}),
        ("full", "none", {"model__freeze": ("tower.pooling",)}),
    ],
)  # fmt: skip
def test_a_step_with_an_attention_pooling_costs_what_xla_counts(
    method, kind, changes, monkeypatch, nothing_twice
):
    check("siglip_vit_b16", method, kind, changes, monkeypatch)


def check(name, method, kind, changes, monkeypatch):
    shallow = dataclasses.replace(BACKBONES[name], layers=3)
    monkeypatch.setitem(BACKBONES, name, shallow)
    settings = settings_of(method, kind, changes, name)
    model = state.abstract_model(record(settings))
    ours = utilization.training_macs(model, settings.model, FRAMES)
    theirs = counted(model, settings.model)
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(
    ("kinds", "peak"), [(["TPU v5 lite"] * 4, 4 * 197e12), (["cpu"] * 4, None), (["TPU v4", "cpu"], None)]
)
def test_the_peak_is_that_of_all_devices_or_unknown(kinds, peak):
    devices = [types.SimpleNamespace(device_kind=kind) for kind in kinds]
    assert utilization.peak_flops(devices) == peak


def test_the_fullest_device_counts(monkeypatch):
    def device(used, peak):
        stats = {"bytes_in_use": used, "peak_bytes_in_use": peak, "bytes_limit": 100}
        return types.SimpleNamespace(memory_stats=lambda: stats)

    assert memory.device_bytes() == {}  # CPUs do not say
    monkeypatch.setattr(jax, "local_devices", lambda: [device(5, 70), device(20, 60)])
    assert memory.device_bytes() == {"hbm_bytes": 20, "hbm_peak_bytes": 70}
