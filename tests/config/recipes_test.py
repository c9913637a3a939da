"""The recipes in configs/: every combination of arguments is a config, with the published settings."""

import ast
import dataclasses
import functools
import itertools
import re
import sys
from pathlib import Path

import pytest

from inti_jax import config
from inti_jax.config import Config, ConfigError
from inti_jax.data.augmentation import opposites
from inti_jax.runs import state
from tests.configs import record

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = {
    "k400_vit_b16": 400,
    "k400_vit_l14": 400,
    "ssv2_vit_b16": 174,
    "ssv2_vit_l14": 174,
    "ucf101_vit_b16": 101,
    "hmdb51_vit_b16": 51,
}
METHODS = ("full", "linear", "aim", "st_adapter", "zero_i2v", "lora")
COMPRESSIONS = ("none", "inti", "mean", "static", "drop", "tome")


def load(name: str, **arguments: object) -> Config:
    spec = ",".join(f"{key}={value}" for key, value in arguments.items())
    return config.load_config(f"{CONFIGS / name}.py:{spec}")


def value(settings: Config, key: str) -> object:
    return functools.reduce(getattr, key.split("."), settings)


@functools.cache
def gmacs(settings: Config, classes: int) -> float:
    model = state.abstract_model(record(settings, classes))
    return model.macs(settings.data.num_frames) / 1e9


@pytest.mark.parametrize("name", CLASSES)
def test_every_combination_is_a_config(name):
    for method, compression, frames in itertools.product(METHODS, COMPRESSIONS, (8, 16)):
        settings = load(name, method=method, compression=compression, frames=frames, seed=3)
        model = settings.model
        assert (model.adaptation, model.compression.kind) == (method, compression)
        assert (settings.data.num_frames, settings.train.seed) == (frames, 3)
        halves = compression not in ("none", "tome")
        assert model.compression.after == (((6,) if "l14" in name else (3,)) if halves else ())


@pytest.mark.parametrize("name", CLASSES)
def test_defaults(name):
    settings = config.load_config(str(CONFIGS / f"{name}.py"))
    assert settings == load(
        name, method="full", compression="inti", frames=8, temporal="none", group=2, halvings=1
    )
    assert settings.data.name == {"k400": "kinetics400"}.get(name.split("_")[0], name.split("_")[0])
    assert settings.model.pretrained == f"{settings.model.backbone}.safetensors"
    assert (settings.data.resolution, settings.train.dtype) == (224, "bfloat16")


@pytest.mark.parametrize("name", CLASSES)
def test_the_cost_in_the_docstring_is_the_models(name):
    docstring = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    stated = re.search(r"defaults: ([\d.]+) GMACs per view; ([\d.]+) with compression=none", docstring)
    compressed, full = (gmacs(load(name, compression=kind), CLASSES[name]) for kind in ("inti", "none"))
    assert stated.groups() == (f"{compressed:.1f}", f"{full:.1f}")


def test_every_cell_of_egogestar_is_a_config():
    for method, compression, fold in itertools.product(METHODS, COMPRESSIONS, range(1, 6)):
        settings = load("egogestar", method=method, compression=compression, fold=fold, seed=2, steps=7)
        model, data = settings.model, settings.data
        assert (model.adaptation, model.compression.kind) == (method, compression)
        assert model.compression.after == ((3,) if compression not in ("none", "tome") else ())
        assert (data.name, settings.train.seed, settings.train.steps) == (f"egogestar_fold{fold}", 2, 7)
    assert load("egogestar", after="5,8").model.compression.after == (5, 8)
    assert load("egogestar", scales="global").model.compression.scales == ("global",)
    with pytest.raises(ConfigError, match="`fold=0`: it should be 1 to 5"):
        load("egogestar", fold=0)


def test_egogestar_costs_what_its_docstring_says_and_changes_clips_of_its_own_labels():
    docstring = ast.get_docstring(ast.parse((CONFIGS / "egogestar.py").read_text()))
    stated = re.search(r"defaults: ([\d.]+) GMACs per view; ([\d.]+) with compression=none", docstring)
    costs = {kind: gmacs(load("egogestar", compression=kind), 10) for kind in ("inti", "none", "tome")}
    assert stated.groups() == (f"{costs['inti']:.1f}", f"{costs['none']:.1f}")
    assert costs["tome"] / costs["none"] == pytest.approx(0.623, abs=5e-4)
    data = load("egogestar").data
    labels = ("carret", "circlecc", "del", "down", "left", "right", "square", "star", "tick", "up")
    mirrored, backwards = opposites.find(labels, data)
    assert {labels[k]: labels[other] for k, other in mirrored.items()} == {
        "down": "down",
        "left": "right",
        "right": "left",
        "up": "up",
    }
    assert {labels[k]: labels[other] for k, other in backwards.items()} == {
        "down": "up",
        "left": "right",
        "right": "left",
        "up": "down",
    }


@pytest.mark.parametrize(("name", "tome"), [("k400_vit_b16", 62.1), ("k400_vit_l14", 61.6)])
def test_two_halvings_larger_groups_and_merging_cost_about_as_much_as_one(name, tome):
    full = gmacs(load(name, compression="none"), 400)
    assert 62.5 < 100 * gmacs(load(name), 400) / full < 62.9
    assert 62.5 < 100 * gmacs(load(name, halvings=2), 400) / full < 62.9
    assert 62.5 < 100 * gmacs(load(name, group=4), 400) / full < 62.9
    assert 61.1 < 100 * gmacs(load(name, group=3, frames=9), 400) / (full * 9 / 8) < 61.5
    assert 100 * gmacs(load(name, compression="tome"), 400) / full == pytest.approx(tome, abs=0.05)


# Short names for the columns of the table below, whose values are as published.
KEYS = {
    "lr": "train.learning_rate",
    "wd": "train.weight_decay",
    "epochs": "train.epochs",
    "batch": "train.global_batch",
    "drop_path": "model.drop_path",
    "head": "model.head.dropout",
    "sampling": "data.sampling",
    "flip": "data.flip",
    "ops": "data.rand_augment.ops",
    "erase": "data.erase.probability",
    "smooth": "train.label_smoothing",
    "clips": "eval.clips",
    "crops": "eval.crops",
}
PUBLISHED = """
config         method     lr     wd    epochs batch drop_path head sampling flip ops erase smooth clips crops
k400_vit_b16   full       1e-5   0.05  55     256   0         0.5  uniform  1    4   0     0      4     3
k400_vit_b16   aim        3e-4   0.05  30     64    0.2       0.5  dense    1    0   0     0      3     1
k400_vit_b16   st_adapter 7.5e-4 0.01  12     192   0         0.5  dense    1    0   0     0      3     1
k400_vit_b16   zero_i2v   3e-4   0.05  40     64    0         0.5  dense    1    4   0     0      3     1
k400_vit_l14   full       8e-6   0.001 30     256   0         0    uniform  1    0   0     0.1    4     3
k400_vit_l14   aim        3e-4   0.05  30     64    0.2       0.5  dense    1    0   0     0      3     1
k400_vit_l14   zero_i2v   3e-4   0.05  40     64    0         0.5  dense    1    4   0     0      3     1
ssv2_vit_b16   full       4e-5   0.05  22     256   0.2       0.5  uniform  0    4   0     0      1     3
ssv2_vit_b16   aim        3e-4   0.05  50     64    0.2       0.5  uniform  0    4   0.25  0.1    1     3
ssv2_vit_b16   st_adapter 1e-3   0.01  50     256   0         0.5  uniform  0    4   0     0      1     3
ssv2_vit_b16   zero_i2v   3e-4   0.05  50     64    0         0.5  uniform  1    4   0.25  0.1    1     3
ssv2_vit_l14   aim        3e-4   0.05  50     64    0.2       0.5  uniform  0    4   0.25  0.1    1     3
ssv2_vit_l14   zero_i2v   3e-4   0.05  50     32    0         0.5  uniform  1    4   0.25  0.1    1     3
ucf101_vit_b16 zero_i2v   3e-4   0.05  40     128   0         0.5  uniform  1    4   0     0      1     3
hmdb51_vit_b16 zero_i2v   3e-4   0.05  40     64    0         0.5  uniform  1    4   0     0      1     3
"""
COLUMNS, *ROWS = (line.split() for line in PUBLISHED.strip().splitlines())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2]))
def test_published_settings(row):
    settings = load(row[0], method=row[1])
    for column, text in zip(COLUMNS[2:], row[2:], strict=True):
        found = value(settings, KEYS[column])
        assert found == (text if isinstance(found, str) else pytest.approx(float(text))), column


@pytest.mark.parametrize(
    ("name", "method", "epochs"),
    [
        ("k400_vit_b16", "full", 5),
        ("k400_vit_b16", "aim", 2.5),
        ("k400_vit_b16", "st_adapter", 2),
        ("ssv2_vit_b16", "zero_i2v", 2.5),
        ("k400_vit_l14", "full", 5),
    ],
)
def test_warmup_is_a_share_of_the_epochs(name, method, epochs):
    train = load(name, method=method).train
    assert train.warmup_fraction * train.epochs == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("name", "method", "start", "end", "betas"),
    [
        ("k400_vit_b16", "full", 0.1, 0.1, (0.9, 0.999)),
        ("ssv2_vit_b16", "full", 0.025, 0.025, (0.9, 0.999)),
        ("k400_vit_l14", "full", 0.0, 0.01, (0.9, 0.98)),
        ("hmdb51_vit_b16", "full", 0.0, 0.01, (0.9, 0.98)),
        ("k400_vit_b16", "aim", 0.1, 0.0, (0.9, 0.999)),
        ("ucf101_vit_b16", "zero_i2v", 0.1, 0.0, (0.9, 0.999)),
        ("k400_vit_b16", "st_adapter", 0.0, 0.0, (0.9, 0.999)),
    ],
)
def test_where_the_rate_starts_and_ends_and_the_betas(name, method, start, end, betas):
    train = load(name, method=method).train
    assert (train.optimizer, train.adamw.betas) == ("adamw", betas)
    assert (train.start_rate, train.end_rate) == (pytest.approx(start), pytest.approx(end))


@pytest.mark.parametrize(
    ("name", "method", "rates"),
    [
        ("k400_vit_b16", "aim", (1.0, 1.0, 1.0)),
        ("k400_vit_b16", "full", (1.0, 1.0, 1.0)),
        ("k400_vit_l14", "full", (1.0, 10.0, 10.0)),
        ("k400_vit_l14", "aim", (0.1, 0.1, 1.0)),
        ("k400_vit_l14", "zero_i2v", (0.1, 0.1, 1.0)),
        ("ssv2_vit_l14", "aim", (0.1, 0.1, 1.0)),
        ("ssv2_vit_l14", "zero_i2v", (0.1, 0.1, 1.0)),
    ],
)
def test_rates_of_tower_added_and_head(name, method, rates):
    train = load(name, method=method).train
    assert (train.tower_rate, train.added_rate, train.head_rate) == rates


@pytest.mark.parametrize(
    ("name", "frames", "shifts"),
    [
        ("k400_vit_b16", 8, ((-1, 1), (1, 1))),
        ("k400_vit_l14", 8, ((-1, 2), (1, 2))),
        ("k400_vit_l14", 32, ((-1, 2), (1, 2), (-2, 2))),
        ("ssv2_vit_b16", 16, ((-1, 1), (1, 1), (-2, 1), (2, 1))),
        ("ssv2_vit_l14", 32, ((-1, 2), (1, 2), (-2, 1), (2, 1), (-3, 1))),
        ("ucf101_vit_b16", 8, ((-1, 1), (1, 1))),
        ("hmdb51_vit_b16", 32, ((-1, 1), (1, 1), (-2, 1), (2, 1))),
    ],
)
def test_shifted_heads(name, frames, shifts):
    assert load(name, method="zero_i2v", frames=frames).model.zero_i2v.shifts == shifts
    assert load(name, temporal="shift", frames=frames).model.zero_i2v.shifts == shifts


def test_adapters_by_dataset():
    def adapters(name: str) -> tuple[object, ...]:
        model = load(name).model
        return (
            (model.aim.scale, model.aim.temporal_adapters),
            (model.st_adapter.width, model.st_adapter.before),
            (model.zero_i2v.scale, model.zero_i2v.dropout),
        )

    assert adapters("k400_vit_b16") == ((0.5, 1), (384, ("mlp",)), (0.5, 0.1))
    assert adapters("k400_vit_l14") == ((0.5, 1), (384, ("mlp",)), (0.5, 0.1))
    assert adapters("ssv2_vit_b16") == ((1.0, 2), (384, ("attn", "mlp")), (1.0, 0.0))
    assert adapters("ssv2_vit_l14") == ((1.0, 1), (384, ("attn", "mlp")), (1.0, 0.1))


def test_clips_of_kinetics_span_128_frames():
    strides = {
        frames: load("k400_vit_b16", method="aim", frames=frames).data.stride for frames in (8, 16, 32)
    }
    assert strides == {8: 16, 16: 8, 32: 4}


def test_from_32_frames_zero_i2v_erases_on_kinetics():
    settings = load("k400_vit_l14", method="zero_i2v", frames=32)
    assert (settings.data.erase.probability, settings.data.erase.fill) == (0.25, "noise")
    assert settings.train.global_batch == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "method=st-adapter",
            "`method=st-adapter`: it should be one of full, linear, aim, st_adapter, zero_i2v",
        ),
        ("metod=aim", "did you mean `method`"),
        ("compression=intii", "it should be 'none', 'inti', 'mean', 'static', 'drop' or 'tome'"),
        ("temporal=attn", "it should be 'none', 'attention', 'conv' or 'shift'"),
        ("method=aim,temporal=attention", "set one of the two"),
        ("frames=0", "`data.num_frames` is 0: it should be greater than 0"),
        ("frames=9", "should be divisible by 2"),
        ("frames=10,halvings=2", "should be divisible by 4"),
        ("halvings=3", "`halvings=3`: it should be 1 or 2"),
        ("compression=tome,halvings=2", "`compression=tome` makes no frames fewer"),
        ("group=3", "should be divisible by 3"),
        ("group=5", "`group=5`: it should be 2, 3 or 4"),
        ("group=4,halvings=2", "`halvings=2`: it should be 1 with `group=4`"),
        ("compression=none,group=3", "`group=3`: `compression=none` makes no frames fewer"),
    ],
)
@pytest.mark.parametrize("name", ["k400_vit_b16", "ssv2_vit_l14"])
def test_a_wrong_argument_is_one_line(name, arguments, message):
    with pytest.raises(ConfigError) as caught:
        config.load_config(f"{CONFIGS / name}.py:{arguments}")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_recipes_load_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    before = list(sys.path)
    link = tmp_path / "link.py"
    link.symlink_to(CONFIGS / "ucf101_vit_b16.py")
    assert dataclasses.asdict(config.load_config(str(link)))["data"]["name"] == "ucf101"
    assert sys.path == before
