"""Weights from a converted file into the video model, placed where each device keeps them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from inti_jax import config
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.models import parameters
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from inti_jax.pretrained.api import load_clip
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.pretrained.loading import load
from inti_jax.pretrained.posemb import resample
from tests.cost.compiled import call, initialize
from tests.pretrained.weights import write_tiny

TINY = BACKBONES["tiny"]
GRID = TINY.grid


@pytest.fixture
def model():
    settings = config.Model(compression=config.Compression(kind="inti", after=(2,)))
    return nnx.eval_shape(lambda: VideoModel(settings, 5, rngs=make_rngs(0)))


def _one_device(shapes):
    return dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))


def test_coverage_names_every_parameter(tmp_path, model):
    path = write_tiny(tmp_path / "f.safetensors", embed=16)
    shapes = parameters.parameter_shapes(model)
    params, coverage = load(path, shapes, _one_device(shapes), grid=GRID)
    assert set(coverage.loaded) == params.keys() == {name for name in shapes if name.startswith("tower.")}
    assert set(coverage.new) == {name for name in shapes if not name.startswith("tower.")}
    assert coverage.dropped == ("projection.kernel",)
    assert str(coverage) == f"{len(params)} loaded, {len(coverage.new)} new, 1 dropped"
    for name, value in params.items():
        np.testing.assert_array_equal(value, ClipFile(path).read(name))


def test_each_device_gets_only_its_shard(tmp_path, model, monkeypatch):
    path = write_tiny(tmp_path / "f.safetensors")
    mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=4, tensor=1), jax.devices()[:4])
    shapes = parameters.parameter_shapes(model)
    shardings = sharding.parameter_shardings(shapes, mesh)
    read = []
    whole = ClipFile.read

    def counting(self, name, index=()):
        part = whole(self, name, index)
        read.append((name, part.size))
        return part

    monkeypatch.setattr(ClipFile, "read", counting)
    params, _ = load(path, shapes, shardings, grid=GRID)
    kernel = "tower.blocks.0.mlp.fc.kernel"
    assert [size for name, size in read if name == kernel] == [params[kernel].size // 4] * 4
    monkeypatch.undo()
    for name, value in params.items():
        assert value.sharding.is_equivalent_to(shardings[name], value.ndim)
        np.testing.assert_array_equal(value, ClipFile(path).read(name))


def test_frozen_part_in_bfloat16(tmp_path, model):
    path = write_tiny(tmp_path / "f.safetensors")
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        for name, leaf in parameters.parameter_shapes(model).items()
    }
    params, _ = load(path, shapes, _one_device(shapes), grid=GRID)
    for name, value in params.items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, ClipFile(path).read(name).astype(jnp.bfloat16))


@pytest.mark.parametrize(("resolution", "grid"), [(16, (2, 2)), ((16, 64), (2, 8)), ((64, 16), (8, 2))])
def test_positions_for_another_resolution(tmp_path, model, resolution, grid):
    """Two of them have as many positions as the model, of another shape."""
    small = dataclasses.replace(TINY, resolution=resolution)
    path = write_tiny(tmp_path / "f.safetensors", image=small)
    shapes = parameters.parameter_shapes(model)
    params, coverage = load(path, shapes, _one_device(shapes), grid=GRID)
    assert coverage.resampled == f"{grid[0]}x{grid[1]} to 4x4"
    original = ClipFile(path).read("tower.positional_embedding")
    np.testing.assert_array_equal(params["tower.positional_embedding"], resample(original, grid, GRID))


@pytest.mark.parametrize("change", [{"width": 48, "heads": 3}, {"layers": 5}, {"patch": 4}])
def test_another_backbone_is_refused(tmp_path, model, change):
    path = write_tiny(tmp_path / "f.safetensors", image=dataclasses.replace(TINY, **change))
    shapes = parameters.parameter_shapes(model)
    with pytest.raises(UserError, match="does not fit the model's backbone"):
        load(path, shapes, _one_device(shapes), grid=GRID)


def test_fewer_layers_than_the_model(tmp_path, model):
    path = write_tiny(tmp_path / "f.safetensors", image=dataclasses.replace(TINY, layers=3))
    shapes = parameters.parameter_shapes(model)
    with pytest.raises(UserError, match=r"does not fit the model's backbone.*tower\.blocks\.3"):
        load(path, shapes, _one_device(shapes), grid=GRID)


def test_equal_frames_give_the_image_feature(tmp_path):
    path = write_tiny(tmp_path / "f.safetensors")
    model = initialize(lambda: VideoModel(config.Model(), 5, rngs=make_rngs(0)))
    graphdef, params = nnx.graphdef(model), parameters.flatten(nnx.state(model, nnx.Param))
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in params.items()}
    loaded, _ = load(path, shapes, _one_device(shapes), grid=GRID)
    model = parameters.merge(graphdef, {**params, **loaded})

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    video = jnp.asarray(np.repeat(images[:, None], 4, axis=1))
    ours, theirs = call(model, video, method="features"), load_clip(path).encode_image(images)
    norms = np.linalg.norm(theirs, axis=-1)
    assert (np.linalg.norm(ours - theirs, axis=-1) / norms).max() <= 1e-6


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match=r"inti_jax\.convert"):
        load_clip(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match=r"absent\.safetensors: there is no such file; `python -m inti"):
        load_clip(tmp_path / "absent.safetensors")
