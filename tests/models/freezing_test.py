"""Freezing and unfreezing: what trains, what it costs, and what is saved and folded of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import inti_jax
from inti_jax.config import ConfigError, Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed.sharding import make_mesh
from inti_jax.errors import UserError
from inti_jax.models import freezing, parameters
from inti_jax.runs import state, trained, trained_file
from inti_jax.runs.record import RunRecord
from inti_jax.training import loop
from tests.commands import call, convert
from tests.configs import FAMILIES, INTI, record, tiny
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("unreported")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "clip.safetensors")


def names(method="full", **changes):
    """Give the paths that do not train of a tiny model with InTI, and all its paths."""
    settings = tiny(**INTI, model__pretrained="f", model__adaptation=method, **changes)
    shapes = parameters.parameter_shapes(state.abstract_model(record(settings)))
    return shapes.keys() - freezing.trained(settings.model, shapes), set(shapes)


def under(paths, *modules):
    return {
        path for path in paths if any(path == module or path.startswith(f"{module}.") for module in modules)
    }


EMBEDDINGS = ("tower.patch_embed", "tower.class_embedding", "tower.positional_embedding", "tower.ln_pre")


def test_the_first_blocks_are_frozen_with_what_is_below_them():
    frozen, paths = names(model__freeze_blocks=2)
    assert frozen == under(paths, *EMBEDDINGS, "tower.blocks.0", "tower.blocks.1")
    frozen, _ = names(model__freeze_blocks=4)
    assert not under(frozen, "tower.ln_post", "head")


@pytest.mark.parametrize("method", ["linear", "lora", "aim", "st_adapter", "zero_i2v"])
def test_the_last_blocks_train_with_any_method(method):
    before, paths = names(method)
    frozen, _ = names(method, model__unfreeze_last=2)
    freed = under(paths, "tower.blocks.2", "tower.blocks.3", "tower.ln_post")
    assert frozen == before - freed and freed & before


def test_the_pooling_is_a_part_of_the_tower_behind_its_blocks(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], **FAMILIES["siglip"]))
    for method in ("linear", "aim"):
        frozen, paths = names(method)
        assert under(paths, "tower.pooling") <= frozen and "tower.pooling.probe" in paths
        freed, _ = names(method, model__unfreeze_last=1)
        assert not under(freed, "tower.pooling", "tower.ln_post", "tower.blocks.3")
    frozen, _ = names(model__freeze_blocks=4)
    assert "tower.patch_embed.bias" in frozen and not under(frozen, "tower.pooling")


def test_patterns_are_of_parameters_and_modules():
    frozen, paths = names(model__freeze=("tower.blocks.[0-1]", "*.bias", "tower.blocks.3.attn"))
    biases = {path for path in paths if path.endswith(".bias")}
    assert frozen == under(paths, "tower.blocks.0", "tower.blocks.1", "tower.blocks.3.attn") | biases
    frozen, paths = names("lora", model__unfreeze_last=1, model__freeze=("tower.blocks.3.mlp",))
    assert under(paths, "tower.blocks.3.mlp") <= frozen and not under(frozen, "tower.blocks.3.attn")


@pytest.mark.parametrize(
    ("method", "pattern", "message"),
    [
        ("full", "tower.block.0", "matches no parameter of the model: did you mean `tower.blocks.0`?"),
        ("full", "tower.blocks.1?", "matches no parameter"),
        ("full", "", "matches no parameter"),
        ("lora", "tower.blocks.0", "none of which trains: remove it"),
        ("full", "*", "freezes every parameter"),
    ],
)
def test_a_pattern_has_to_name_what_would_train(method, pattern, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        names(method, model__freeze=(pattern,))


def test_what_is_new_cannot_be_frozen(motion_data, weights, tmp_path):
    settings = tiny(motion_data, **INTI, model__pretrained=str(weights), model__freeze=("compressors",))
    with pytest.raises(UserError, match=r"has no values for compressors\.0.*`model\.freeze`: new par"):
        loop.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run_dir(motion_data, weights, tmp_path_factory):
    """A run that trained LoRA, the matrices of the last block beside it, and a compressor."""
    path = tmp_path_factory.mktemp("runs") / "lora"
    settings = tiny(
        motion_data,
        **INTI,
        model__pretrained=str(weights),
        model__adaptation="lora",
        model__unfreeze_last=1,
        model__freeze=("tower.*.bias",),
        train__steps=2,
    )
    loop.train(settings, path)
    return path


def test_what_is_frozen_stays_and_has_no_moments(run_dir, weights):
    run_record = RunRecord.read(run_dir)
    params = trained.load(run_dir, make_mesh(Mesh(), jax.devices()[:1])).params
    names = freezing.trained(run_record.config.model, params)
    assert "tower.blocks.3.attn.qkv.kernel" in names and "tower.blocks.3.attn.qkv.bias" not in names
    first = inti_jax.pretrained.clip_file.ClipFile(weights)
    for path, value in params.items():
        if path.startswith("tower."):
            same = np.array_equal(value, first[path].read())
            assert same == (path not in names), path
    metadata = json.loads((run_dir / "checkpoints" / "2" / "optimizer" / "_METADATA").read_text())
    moments = [key for key in metadata["tree_metadata"] if "'mu'" in key]
    assert len(moments) == len(names)


def test_a_file_of_what_trained_has_all_of_it_and_folds_as_the_run_does(run_dir, weights, tmp_path):
    small = tmp_path / "small.safetensors"
    assert convert(run_dir, "--to", "trained", "--out", small) == 0
    run_record = trained_file.read_record(small)
    shapes = parameters.parameter_shapes(state.abstract_model(run_record))
    assert trained_file.leaves(small, run_record).keys() == freezing.trained(run_record.config.model, shapes)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    whole = trained.load(run_dir, mesh)
    from_file = trained.load(small, mesh)
    for path, value in whole.params.items():
        np.testing.assert_array_equal(from_file.params[path], value, err_msg=path)

    video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    graphdef, folded = whole.for_inference()
    assert not any("lora" in path for path in folded)
    unfolded = jax.jit(parameters.merge(state_graph(run_record), whole.params))(video)
    np.testing.assert_allclose(jax.jit(parameters.merge(graphdef, folded))(video), unfolded, atol=1e-4)


def state_graph(run_record):
    from flax import nnx

    return nnx.graphdef(state.abstract_model(run_record))


def test_a_run_starts_from_a_file_if_what_that_trained_trains_here(run_dir, motion_data, weights, tmp_path):
    small = tmp_path / "small.safetensors"
    assert convert(run_dir, "--to", "trained", "--out", small) == 0
    changes = INTI | {
        "model__pretrained": str(weights), "model__adaptation": "lora", "model__start_from": str(small),
    }  # fmt: skip
    more = tiny(motion_data, **changes, model__unfreeze_last=2)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    theirs = RunRecord.read(run_dir)
    params = trained.start(RunRecord(more, theirs.dataset, theirs.backbone), mesh).params
    expected = trained.load(run_dir, mesh).params
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    with pytest.raises(ConfigError, match=r"trained tower\.blocks\.3\..* too, but here it is frozen"):
        loop.train(tiny(motion_data, **changes), tmp_path / "run")


def test_plan_counts_what_trains():
    arguments = ["--config", "configs/k400_vit_b16.py:compression=none", "--classes", "400"]
    plans = []
    for extra in ([], ["--config.model.freeze_blocks=9"]):
        process = call("plan", *arguments, *extra, "--json")
        plans.append(json.loads(process.stdout))
    block = 12 * 768**2 + 13 * 768
    embeddings = 768 * (3 * 16**2 + 1 + 197 + 2)
    assert plans[0]["params_trainable"] - plans[1]["params_trainable"] == 9 * block + embeddings
    assert plans[1]["freezing"] == "first 9 blocks frozen"
    assert plans[0]["activation_mib"] > 3 * plans[1]["activation_mib"]
