"""The backbone of a run: with "auto" the one in its file, and then all is as if that had a name."""

import dataclasses
import json
import shutil
from unittest import mock

import numpy as np
import pytest

import inti_jax
from inti_jax import features, predict
from inti_jax.config import ConfigError, from_dict
from inti_jax.config.backbones import BACKBONES, BackboneSize, Numerics, published
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.evaluation import evaluate, inputs
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.runs import trained, trained_file
from inti_jax.runs.backbone import check_early, find_backbone
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.commands import convert, plan
from tests.configs import INTI, tiny
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("unreported")

# A size that has no name.
ODD = BackboneSize(width=48, layers=2, heads=3, patch=16, resolution=48, mlp=100)
AUTO = {"model__backbone": "auto"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(
        tmp_path_factory.mktemp("odd") / "odd.safetensors", image=ODD, numerics=Numerics("gelu")
    )


@pytest.fixture
def named():
    """The size has the name `tiny` as long as this is in use."""
    with mock.patch.dict(BACKBONES, tiny=ODD):
        yield


def settings_of(weights, motion_data="data", **changes):
    return tiny(motion_data, model__pretrained=str(weights), **changes)


@pytest.fixture(scope="module")
def runs(weights, motion_data, tmp_path_factory):
    """A run of the named size, and one with "auto"."""
    directory = tmp_path_factory.mktemp("runs")
    with mock.patch.dict(BACKBONES, tiny=ODD):
        loop.train(settings_of(weights, motion_data, **INTI), directory / "named")
    loop.train(settings_of(weights, motion_data, **INTI, **AUTO), directory / "auto")
    return directory


def params_of(run):
    return trained.load(run, sharding.one_device_mesh()).params


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_run_of_the_files_size_is_the_run_of_the_named_size(runs, motion_data, weights):
    first, second = RunRecord.read(runs / "named"), RunRecord.read(runs / "auto")
    assert second.config.model.backbone == "auto"
    assert first.backbone == second.backbone and second.backbone.size == ODD
    assert_equal(params_of(runs / "auto"), params_of(runs / "named"))
    figures = [read_metrics(runs / name)[-1] for name in ("named", "auto")]
    assert figures[0]["split"] == "val"
    for key in ("top1", "top5", "mean_class", "step"):
        assert figures[0][key] == figures[1][key]
    # And it is used as any other run, also without its weights.
    clip = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), np.uint8)
    models = [inti_jax.load(runs / name) for name in ("named", "auto")]
    np.testing.assert_array_equal(models[1](clip), models[0](clip))
    assert models[1].features(clip).shape == (48,)


def test_its_videos_are_evaluated_and_have_features(runs, motion_data, weights, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "auto", run)
    absent = settings_of(tmp_path / "absent", motion_data, **INTI, **AUTO)
    evaluate.evaluate_run(absent, run)  # the weights are in the checkpoint
    first, again = [figures for figures in read_metrics(run) if figures["split"] == "val"]
    assert first["top1"] == again["top1"]
    (tmp_path / "v.mp4").write_bytes(open_dataset("motion_digits", motion_data, "val")[0].video)
    (label,) = predict.predict_files(run, [tmp_path / "v.mp4"], topk=1)
    (expected,) = predict.predict_files(runs / "named", [tmp_path / "v.mp4"], topk=1)
    assert label == expected and len(label["predictions"]) == 1
    features.write(tmp_path / "f.npz", run, inputs.Videos([tmp_path / "v.mp4"], []))
    assert np.load(tmp_path / "f.npz")["features"].shape == (1, 48)


@pytest.fixture
def cut(runs, tmp_path):
    """A copy of the run with "auto", without its last checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(runs / "auto", run)
    shutil.rmtree(run / "checkpoints" / "4")
    return run


def test_it_goes_on_bit_for_bit(runs, cut, weights, motion_data):
    loop.train(settings_of(weights, motion_data, **INTI, **AUTO), cut)
    assert_equal(params_of(cut), params_of(runs / "named"))


def test_a_run_of_the_named_size_goes_on_with_it_and_without_the_file(runs, tmp_path):
    earlier = RunRecord.read(runs / "named")
    settings = dataclasses.replace(
        earlier.config,
        model=dataclasses.replace(earlier.config.model, backbone="auto", pretrained=str(tmp_path / "absent")),
    )
    record = RunRecord(settings, earlier.dataset, find_backbone(settings, earlier))
    record.check_continues(earlier, runs / "named")
    other = dataclasses.replace(record, backbone=published("clip_vit_b16"))
    with pytest.raises(ConfigError, match=r"where `model.backbone` is 'tiny'; here it is 'auto'"):
        other.check_continues(dataclasses.replace(earlier, backbone=published("tiny")), runs / "named")


def test_it_does_not_go_on_from_a_file_that_changed(cut, motion_data, tmp_path):
    for image in (ODD, dataclasses.replace(ODD, layers=1)):  # other weights, and of another size as well
        other = write_tiny(tmp_path / "other.safetensors", image=image, seed=1)
        with pytest.raises(
            ConfigError, match=r"holds other weights .* than those that this run started from"
        ):
            loop.train(settings_of(other, motion_data, **INTI, **AUTO), cut)
    assert not (cut / "checkpoints" / "4").exists()


def test_what_trained_is_a_file_for_either(runs, motion_data, weights, tmp_path, named):
    small, tower = tmp_path / "small.safetensors", tmp_path / "tower.safetensors"
    assert convert(runs / "auto", "--to", "trained", "--out", small) == 0
    assert_equal(params_of(small), params_of(runs / "auto"))
    trained_record = trained_file.read_record(small)
    for changes in (AUTO, {}):
        settings = settings_of(weights, motion_data, **INTI, **changes)
        record = RunRecord(settings, trained_record.dataset, find_backbone(settings))
        trained_file.check_fits(small, trained_record, record)
    wider = dataclasses.replace(
        record, backbone=dataclasses.replace(record.backbone, size=BACKBONES["clip_vit_b16"])
    )
    with pytest.raises(ConfigError, match=r"its `model.backbone` is auto, here it is tiny"):
        trained_file.check_fits(small, trained_record, wider)
    assert convert(runs / "auto", "--out", tower) == 0
    assert ClipFile(tower).description.architecture.image == dataclasses.replace(ODD, resolution=32)


def test_a_plan_says_what_the_file_holds(weights, tmp_path, capsys):
    overrides = [
        f"--config.{key}={value}"
        for key, value in {
            "model.backbone": "auto",
            "model.pretrained": weights,
            "data.resolution": 48,
        }.items()
    ]
    assert plan("--config", "quickstart", "--json", *overrides) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"] == "a ViT of width 48 with 2 layers, 3 heads and patches of 16"
    assert [block["tokens"] for block in found["blocks"]] == [10, 10]
    overrides[1] = f"--config.model.pretrained={tmp_path / 'absent'}"
    assert plan("--config", "quickstart", *overrides) == 2
    assert "absent: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__compression": {"kind": "inti", "after": (3,)}}, "to 2, the depth of the backbone in {}"),
        ({"model__freeze_blocks": 3}, "should be at most 2, the depth of the backbone in {}"),
        ({"model__adaptation": "linear", "model__unfreeze_last": 3}, "be at most 2, the depth"),
        ({"model__unfreeze_last": 1}, "set `model.freeze_blocks` to 1"),
        ({"model__compression": {"kind": "tome", "r": (1, 2, 3)}}, "one for each of the 2 blocks"),
        ({"model__temporal": "shift", "model__zero_i2v__shifts": ((1, 4),)}, "the backbone in {} has 3"),
        ({"data__resolution": 40}, "should be a multiple of 16, the patch size of the backbone in {}"),
        ({"mesh__tensor": 2}, "should divide the 3 heads of the backbone in {}"),
        ({"model__head__init": "text"}, "{} has no text tower"),
    ],
)  # fmt: skip
def test_what_the_size_forbids_names_the_file(weights, tmp_path, changes, message):
    settings = settings_of(weights, **AUTO, **changes)
    for check in (find_backbone, lambda settings: check_early(settings, tmp_path)):
        with pytest.raises(ConfigError) as caught:
            check(settings)
        assert message.format(weights) in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_file_there_is_no_size(tmp_path):
    with pytest.raises(ConfigError, match='"random": name the backbone'):
        tiny(**AUTO)
    settings = settings_of(tmp_path / "absent", **AUTO)
    for check in (find_backbone, lambda settings: check_early(settings, tmp_path)):
        with pytest.raises(ConfigError, match="absent"):
            check(settings)


def test_a_size_that_no_tower_has_is_damage(weights, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes().replace(b'\\"heads\\": 3', b'\\"heads\\": 5'))
    assert damaged.read_bytes() != weights.read_bytes()
    with pytest.raises(ConfigError, match="damaged metadata"):
        find_backbone(settings_of(damaged, **AUTO))


def test_a_record_from_before_sizes_were_kept_is_read(runs, named):
    values = json.loads((runs / "named" / "config.json").read_text())
    del values["backbone"]["size"]
    earlier = RunRecord.from_json(values, runs / "config.json")
    assert earlier.backbone == RunRecord.read(runs / "named").backbone
    record = dataclasses.replace(earlier, config=from_dict(dataclasses.asdict(earlier.config)))
    record.check_continues(earlier, runs)
