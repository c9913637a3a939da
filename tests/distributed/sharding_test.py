import dataclasses
import functools
import math
from unittest import mock

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from inti_jax.config import ConfigError, Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.runs import initial, state
from inti_jax.training import optim
from tests.configs import FAMILIES, INTI, record, tiny


def shapes_of(**changes):
    return parameters.parameter_shapes(state.abstract_model(record(tiny(**changes))))


def test_rules_cover_the_model_and_slice_what_is_large():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    shapes = shapes_of(**INTI)
    found = sharding.parameter_shardings(shapes, mesh)
    assert found.keys() == shapes.keys()
    assert found["tower.blocks.0.attn.qkv.kernel"].spec == PartitionSpec("fsdp", None, "tensor", None)
    assert found["tower.blocks.3.mlp.fc.kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["tower.blocks.3.mlp.proj.kernel"].spec == PartitionSpec("tensor", "fsdp")
    assert found["tower.blocks.0.ln_1.scale"].spec == PartitionSpec(None)
    per_device = sum(np.prod(found[path].shard_shape(shape.shape)) for path, shape in shapes.items())
    assert per_device < 0.5 * sum(np.prod(shape.shape) for shape in shapes.values())


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_errors():
    mesh = sharding.make_mesh(Mesh())
    shapes = shapes_of()
    stray = jax.ShapeDtypeStruct((4,), np.float32)
    with pytest.raises(ValueError, match=r"no sharding rule for parameter tower\.novelty"):
        sharding.parameter_shardings(shapes | {"tower.novelty": stray}, mesh)
    with pytest.raises(ValueError, match="no sharding rules for module novelty"):
        sharding.parameter_shardings(shapes | {"novelty.kernel": stray}, mesh)
    without_embeddings = {path: shape for path, shape in shapes.items() if "_embedding" not in path}
    with pytest.raises(ValueError, match="match no parameter"):
        sharding.parameter_shardings(without_embeddings, mesh)


def test_moments_live_where_their_parameters_do():
    mesh = sharding.make_mesh(Mesh(data=4, fsdp=2))
    settings = tiny()
    transform, _ = optim.make_optimizer(settings.train, 4)
    target = state.abstract_state(record(settings), transform, mesh)
    train_state = initial.initial_state(record(settings), transform, target)
    moments = [leaf for leaf in jax.tree.leaves(train_state.opt_state) if leaf.ndim > 1]
    sliced = [leaf for leaf in moments if leaf.sharding.spec != PartitionSpec(*[None] * leaf.ndim)]
    assert len(moments) == 2 * sum(leaf.ndim > 1 for leaf in train_state.trainable.values())
    kernel = "tower.blocks.0.mlp.fc.kernel"
    assert len(sliced) > 20
    adam = next(
        part
        for part in jax.tree.leaves(train_state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    )
    assert adam.mu[kernel].sharding == train_state.trainable[kernel].sharding


@pytest.mark.parametrize("sizes", [Mesh(data=3), Mesh(data=-1, fsdp=3), Mesh(data=2, fsdp=2)])
def test_a_mesh_that_does_not_fit_the_devices_says_so(sizes):
    with pytest.raises(ConfigError, match="there are 8 devices"):
        sharding.make_mesh(sizes)


def test_a_batch_that_does_not_split_says_so():
    mesh = sharding.make_mesh(Mesh())
    with pytest.raises(ConfigError, match="multiple of 8"):
        sharding.check_batch(12, "train.global_batch", mesh)


def test_tensor_that_does_not_divide_the_heads_says_so_also_where_it_is_what_the_others_leave():
    mesh = sharding.make_mesh(Mesh(data=1, tensor=-1))
    with pytest.raises(ConfigError, match=r"`mesh.tensor` is 8: it should divide the 4 heads"):
        sharding.parameter_shardings(shapes_of(), mesh)


@st.composite
def mesh_sizes(draw):
    devices = draw(st.sampled_from([1, 2, 4, 8]))
    tensor = draw(st.sampled_from([n for n in (1, 2, 4) if n <= devices]))
    fsdp = draw(st.sampled_from([n for n in (1, 2, 4, 8) if tensor * n <= devices]))
    return Mesh(data=devices // fsdp // tensor, fsdp=fsdp, tensor=tensor)


def mesh_of(sizes):
    return sharding.make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])


@functools.cache
def shapes_by(method, family):
    size = dataclasses.replace(BACKBONES["tiny"], **FAMILIES[family])
    with mock.patch.dict(BACKBONES, tiny=size):
        pretrained = "random" if method == "full" else "absent"
        return shapes_of(model__adaptation=method, model__pretrained=pretrained, **INTI)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    sizes=mesh_sizes(),
    method=st.sampled_from(["full", "linear", "aim", "st_adapter", "zero_i2v", "lora"]),
    family=st.sampled_from(list(FAMILIES)),
)
def test_every_mesh_slices_every_method_by_the_same_rules(sizes, method, family):
    mesh, shapes = mesh_of(sizes), shapes_by(method, family)
    found = sharding.parameter_shardings(shapes, mesh)
    assert found.keys() == shapes.keys()
    fsdp = mesh.shape["fsdp"]
    for path, shape in shapes.items():
        spec = found[path].spec
        at = {axis: dim for dim, axis in enumerate(spec) if axis is not None}
        assert at.keys() <= {"fsdp", "tensor"} and len(spec) == len(shape.shape), path
        # Each slice is whole: every device has as much as every other.
        assert all(shape.shape[dim] % mesh.shape[axis] == 0 for axis, dim in at.items()), path
        # Megatron's pairs: what goes into a sum over the group, and what comes out of the split.
        split = any(name in path for name in ("attn.qkv.", "attn.out.kernel", "mlp.fc.", "mlp.proj.kernel"))
        assert ("tensor" in at) == (split and path.startswith("tower.")), path
        free = [d for d, n in enumerate(shape.shape) if n % fsdp == 0 and d != at.get("tensor")]
        large = math.prod(shape.shape) >= 2**12
        assert ("fsdp" in at) == (large and bool(free)), path
        if "fsdp" in at:
            assert shape.shape[at["fsdp"]] == max(shape.shape[d] for d in free), path
    held = sum(math.prod(found[path].shard_shape(shape.shape)) for path, shape in shapes.items())
    small = sum(math.prod(shape.shape) for shape in shapes.values() if math.prod(shape.shape) < 2**12)
    assert held <= small + sum(math.prod(shape.shape) for shape in shapes.values()) / fsdp + 1


@hypothesis.settings(deadline=None)
@hypothesis.given(sizes=mesh_sizes(), parts=st.integers(1, 3))
def test_a_batch_is_placed_row_by_row(sizes, parts):
    mesh = mesh_of(sizes)
    size = parts * mesh.shape["data"] * mesh.shape["fsdp"]
    rows = sharding.host_rows(mesh, size)
    assert rows == list(range(size))  # one process has all of them
    placed = sharding.place_batch(
        {"index": np.asarray(rows), "x": np.arange(2.0 * size).reshape(-1, 2)}, mesh
    )
    np.testing.assert_array_equal(placed["index"], rows)
    assert placed["x"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    assert all(shard.data.shape == (parts, 2) for shard in placed["x"].addressable_shards)


@pytest.mark.parametrize(
    ("shape", "hosts", "expected"),
    [
        ((8, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3]),
        ((2, 2, 2), [0, 0, 0, 0, 1, 1, 1, 1], [0, 1]),
        ((1, 1, 8), [0, 0, 0, 0, 1, 1, 1, 1], [0]),  # `tensor` spans hosts: both have every row
        ((3, 1, 2), [0, 0, 0, 1, 1, 1], [0, 1]),  # and here the middle part is on both
        ((4, 1, 1), [0, 1, 0, 1], [0, 2]),  # a mesh that follows the machines' wiring
    ],
)
def test_a_host_has_the_rows_that_its_devices_hold(shape, hosts, expected):
    assert sharding.shards_on(0, np.reshape(hosts, shape)) == expected
