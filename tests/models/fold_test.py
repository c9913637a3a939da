"""Folding changes the parameters and not the function."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import Compression, Lora, Model, ZeroI2V
from inti_jax.config.backbones import BACKBONES
from inti_jax.models import parameters
from inti_jax.models.fold import fold
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from tests.configs import FAMILIES

INTI = Compression(kind="inti", after=(2,))
FOLDING = {
    "lora": Model(
        adaptation="lora", lora=Lora(rank=3, targets=("query", "key", "value", "out", "fc", "proj"))
    ),
    "lora_of_values_on_a_compressed_clip": Model(
        adaptation="lora", lora=Lora(rank=3, targets=("value",)), compression=INTI
    ),
    "zero_i2v": Model(adaptation="zero_i2v", zero_i2v=ZeroI2V(scale=0.7)),
    "zero_i2v_compressed": Model(adaptation="zero_i2v", compression=INTI),
    "lora_with_attention_over_time": Model(adaptation="lora", temporal="attention"),
}


def build(config: Model, *, folded: bool = False) -> VideoModel:
    return nnx.eval_shape(lambda: VideoModel(config, 5, folded=folded, rngs=make_rngs(0)))


def random_params(model: VideoModel) -> dict[str, jax.Array]:
    """As after training: what starts at zero no longer is."""
    rng = np.random.default_rng(0)
    shapes = parameters.parameter_shapes(model)
    scale = {path: 0.1 if len(shape.shape) < 2 else shape.shape[0] ** -0.5 for path, shape in shapes.items()}
    return {
        path: jax.numpy.asarray(scale[path] * rng.standard_normal(shape.shape, np.float32))
        for path, shape in shapes.items()
    }


def apply(model: VideoModel, params: dict[str, jax.Array], video: jax.Array) -> jax.Array:
    graphdef = nnx.graphdef(model)
    return jax.jit(lambda params: parameters.merge(graphdef, params)(video))(params)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        *((config, "clip") for config in FOLDING.values()),
        (FOLDING["lora"], "dinov2"),
        (FOLDING["zero_i2v"], "dinov2"),
        (FOLDING["lora_of_values_on_a_compressed_clip"], "siglip"),
    ],
    ids=[*FOLDING, "lora in dinov2", "zero_i2v in dinov2", "lora in siglip"],
)
def test_a_folded_model_is_the_same_function_at_no_added_cost(config, family, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], **FAMILIES[family]))
    model, folded = build(config), build(config, folded=True)
    params = random_params(model)
    after = fold(config, params)
    assert {path: leaf.shape for path, leaf in after.items()} == {
        path: shape.shape for path, shape in parameters.parameter_shapes(folded).items()
    }
    video = jax.random.randint(jax.random.key(0), (2, 4, 32, 32, 3), 0, 256).astype(np.uint8)
    outputs = [apply(m, p, video) for m, p in ((model, params), (folded, after))]
    size = np.abs(outputs[0]).max()
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5 * max(size, 1))
    assert folded.macs(4) == model.macs(4, folded=True) < model.macs(4)
    # The adapters did something: without them the outputs are others.
    plain = {path: 0 * leaf if path.startswith("adapters.") else leaf for path, leaf in params.items()}
    assert np.abs(apply(model, plain, video) - outputs[0]).max() > 1e-2 * size


def test_what_does_not_fold_stays():
    config = Model(adaptation="aim")
    params = random_params(build(config))
    assert fold(config, params).keys() == params.keys()
    assert build(config, folded=True).macs(8) == build(config).macs(8)


def test_bfloat16_matrices_are_folded_in_float32():
    config = FOLDING["lora"]
    params = {
        path: leaf.astype("bfloat16") if path.startswith("tower.") else leaf
        for path, leaf in random_params(build(config)).items()
    }
    kernel = fold(config, params)["tower.blocks.0.mlp.fc.kernel"]
    down, up = (params[f"adapters.0.lora_fc.{name}.kernel"] for name in ("down", "up"))
    expected = np.asarray(params["tower.blocks.0.mlp.fc.kernel"], np.float64) + 16 / 3 * np.asarray(
        down, np.float64
    ) @ np.asarray(up, np.float64)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)
