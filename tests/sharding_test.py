import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from inti_jax import initial, optim, sharding, state
from inti_jax.config import ConfigError, Mesh
from tests.configs import INTI, record, tiny


def shapes_of(**changes):
    return state.parameter_shapes(state.abstract_model(record(tiny(**changes))))


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
