"""Blocks in one loop compute what they do one after another: logits, gradients, and what is random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config.backbones import BACKBONES
from inti_jax.models import freezing, parameters
from inti_jax.runs import state
from tests.configs import record, tiny

METHODS = ("full", "linear", "aim", "st_adapter", "zero_i2v", "lora")


def make(method, kind="none", **changes):
    """The models unrolled and scanned, and parameters for both, none of them zero."""
    found = []
    for scan in ("off", "on"):
        settings = tiny(
            model__pretrained="absent.safetensors",
            model__adaptation=method,
            model__st_adapter__width=16,
            model__compression__kind=kind,
            model__compression__after=() if kind == "none" else (1,),
            model__scan=scan,
            data__num_frames=4,
            **changes,
        )
        found.append(nnx.graphdef(state.abstract_model(record(settings))))
        shapes = parameters.parameter_shapes(state.abstract_model(record(settings)))
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(
            path.endswith("scale") + 0.1 * rng.standard_normal(shape.shape), settings.train.dtype
        )
        for path, shape in shapes.items()
    }
    return found, params, freezing.trained(settings.model, params)


VIDEO = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)

CASES = [
    {"method": "full", "model__temporal": "attention"},
    {"method": "full", "kind": "inti", "model__remat": True, "model__drop_path": 0.5},
    {"method": "linear"},
    {"method": "aim", "model__drop_path": 0.5},
    {"method": "st_adapter"},
    {"method": "zero_i2v", "model__zero_i2v__dropout": 0.5},
    {"method": "full", "model__freeze_blocks": 2},
    {"method": "linear", "model__unfreeze_last": 2},
    {"method": "lora", "model__temporal": "conv", "model__lora__targets": ("key", "out", "fc", "proj")},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_gradients_are_those_of_the_blocks_unrolled(monkeypatch, case):
    # Two blocks that are alike, behind one where InTI is, or two of which other parameters train.
    parted = any("freeze" in name for name in case)
    layers = 4 if parted else 3 if case.get("kind") == "inti" else 2
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=layers))
    graphdefs, params, trained = make(**case)
    key = jax.random.key(3) if any("drop" in name for name in case) else None

    def loss(trainable, graphdef):
        logits = parameters.merge(graphdef, params | trainable)(jnp.asarray(VIDEO), key)
        return (jax.nn.log_softmax(logits)[:, 0] ** 2).sum(), logits

    results, loops = [], []
    for graphdef in graphdefs:
        run = jax.jit(lambda trainable, graphdef=graphdef: jax.grad(loss, has_aux=True)(trainable, graphdef))
        traced = run.trace({path: params[path] for path in trained})
        loops.append(scans(traced.jaxpr))
        results.append(traced.lower().compile()({path: params[path] for path in trained}))
    (grads, logits), (scanned_grads, scanned_logits) = results
    assert loops[0] == [] and set(loops[1]) == {2}
    np.testing.assert_allclose(scanned_logits, logits, atol=1e-5 * np.abs(logits).max())
    assert np.ptp(logits) > 0.01 and any(np.abs(grad).max() > 0 for grad in grads.values())
    for path, grad in grads.items():
        np.testing.assert_allclose(
            scanned_grads[path], grad, atol=1e-5 * np.abs(grad).max() + 1e-9, err_msg=path
        )


def scans(jaxpr):
    """The numbers of rounds of its loops."""
    return [equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"]
