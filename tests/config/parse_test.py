import dataclasses
import json

import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.errors import UsageError
from inti_jax.runs.record import RunRecord
from tests.configs import INTI, record, tiny

CONTRASTIVE = {
    "train__loss": "contrastive",
    "model__pretrained": "f",
    "model__head__init": "text",
    "model__freeze": ("head.classes",),
}
SEVERAL = {"train__loss": "binary_cross_entropy"}
PATIENT = {"train__early_stop__patience": 2, "train__eval_every_steps": 2}


def test_every_field_survives_json():
    settings = tiny(**INTI, data__crop_scale=(0.3, 0.9), data__erase__scale=(0.1, 0.2), data__jitter__hue=0.1)
    assert config.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__compression__knd": "inti"}, "unknown key `model.compression.knd`; did you mean `kind`"),
        (
            {"model__compression__kind": "intii"},
            "it should be 'none', 'inti', 'mean', 'static', 'drop' or 'tome'",
        ),
        ({"train__global_batch": "32"}, "`train.global_batch` is '32': it should be a valid integer"),
        ({"train__steps": True}, "`train.steps` is True"),
        ({"train__steps": 0}, "set exactly one of the two"),
        ({"train__epochs": 2.0}, "set exactly one of the two"),
        ({"train__accumulate": 3}, "it should divide `train.global_batch`"),
        (INTI | {"model__compression__after": (5,)}, "from 1 to 4, the depth of tiny"),
        (INTI | {"model__compression__after": (2, 1)}, "increasing block numbers"),
        (INTI | {"model__compression__after": ()}, "is empty but `kind` is 'inti'"),
        ({"model__compression__after": (1,)}, 'but `kind` is "none"'),
        (INTI | {"data__num_frames": 7}, "`data.num_frames` is 7: it should be divisible by 2"),
        (
            INTI | {"model__compression__after": (1, 2, 3), "data__num_frames": 12},
            "it should be divisible by 8",
        ),
        (INTI | {"model__compression__scales": ("point", "point")}, "each once"),
        (
            {"data__resolution": 36},
            "is 36: it should be a multiple of 8, the patch size of tiny, such as 32 or 40",
        ),
        ({"data__resolution": 3}, "such as 8"),
        (
            {"data__resolution": (32, 60)},
            "each side should be a multiple of 8, the patch size of tiny, such as (32, 64)",
        ),
        ({"data__resolution": (32, 0)}, "`data.resolution.1` is 0: it should be greater than 0"),
        ({"data__resolution": (32,)}, "`data.resolution` is [32]: it should have more items"),
        ({"data__resolution": (32, 32, 3)}, "a valid integer or have at most 2 items, not 3"),
        ({"data__crop_scale": (0.9, 0.1)}, "low <= high"),
        ({"data__crop": "centre"}, "`data.crop` is 'centre': it should be 'random_resized' or 'multi_scale'"),
        ({"data__rand_augment__magnitude": 11.0}, "it should be less than or equal to 10"),
        ({"data__jitter__hue": 0.6}, "it should be less than or equal to 0.5"),
        ({"data__jitter__brightnes": 0.4}, "`data.jitter.brightnes`; did you mean `brightness`"),
        ({"data__grayscale": -0.1}, "it should be greater than or equal to 0"),
        ({"data__erase__scale": (0.4, 0.2)}, "`data.erase.scale` is (0.4, 0.2): it should be (low, high)"),
        ({"data__erase__ratio": (0.0, 0.2)}, "`data.erase.ratio` is (0.0, 0.2): it should be (low, high)"),
        ({"data__name": ""}, "`data.name` is empty"),
        ({"data__balance": True, "train__class_weights": "inverse"}, "balanced classes need no weights"),
        ({"train__class_weights": (1.0, -1.0)}, "`train.class_weights.1` is -1.0: it should be greater than"),
        ({"train__class_weights": "balanced"}, "it should be 'none' or 'inverse' or a valid tuple"),
        ({"train__loss": "cross_entrpy"}, "`train.loss` is 'cross_entrpy': it should be 'cross_entropy'"),
        (SEVERAL | {"data__balance": True}, "videos with several labels cannot be drawn by class"),
        (SEVERAL | PATIENT, '`train.early_stop.metric` is "top1" and `train.loss` is "binary_cross_entropy"'),
        (PATIENT | {"train__early_stop__metric": "map"}, 'set it to "top1", "top5" or "mean_class"'),
        ({"train__loss": "contrastive"}, 'texts of their classes, set `model.head.init` to "text"'),
        (CONTRASTIVE | {"model__freeze": ("tower.blocks.0",)}, 'add "head.classes" to it'),
        (CONTRASTIVE | {"train__accumulate": 2}, "`train.accumulate` is 2: it should be 1, since the loss"),
        (CONTRASTIVE | {"train__mix__cutmix": 1.0}, "`train.mix.cutmix` is 1.0: it should be 0.0"),
        (CONTRASTIVE | {"train__label_smoothing": 0.1}, "`train.label_smoothing` is 0.1: it should be 0.0"),
        (CONTRASTIVE | {"train__class_weights": "inverse"}, "it should be 'none'"),
        ({"train__compiler_options": ("fast_math",)}, 'has "fast_math": write each as NAME=VALUE'),
        ({"model__pretrained": ""}, 'or to "random"'),
        ({"model__adaptation": "linear"}, "a frozen backbone needs converted weights"),
        ({"model__head__init": "text"}, "class names need a text tower"),
        ({"model__pretrained": "f", "model__head__templates": ("a photo",)}, "one {} for the class name"),
        ({"model__adaptation": "adapters"}, "'full', 'linear', 'aim', 'st_adapter', 'zero_i2v' or 'lora'"),
        ({"model__lora__rank": 0}, "`model.lora.rank` is 0: it should be greater than 0"),
        ({"model__lora__targets": ("query", "vaule")}, "'query', 'key', 'value', 'out', 'fc' or 'proj'"),
        ({"model__lora__targets": ()}, "`model.lora.targets` is (): name one or more"),
        ({"model__st_adapter__before": ("mlp", "mlp")}, "each once"),
        ({"model__temporal": "conv", "data__num_frames": 1}, "`data.num_frames` is 1"),
        (
            {"model__adaptation": "aim", "model__pretrained": "f", "model__temporal": "attention"},
            '`model.adaptation` = "aim" has already',
        ),
        ({"model__zero_i2v__shifts": ((0, 1),)}, "offsets should differ from each other and from 0"),
        (
            {"model__temporal": "shift", "model__zero_i2v__shifts": ((-1, 3), (1, 3))},
            "it moves 6 heads, and tiny has 4",
        ),
        (
            {"model__compression__kind": "tome", "model__compression__r": (1, 2)},
            "one for each of the 4 blocks",
        ),
        ({"model__compression__kind": "tome", "model__compression__r": -1}, "`model.compression.r` is -1"),
        ({"model__compression__r": (1, -2)}, "`model.compression.r.1` is -2: it should be greater than or"),
        ({"model__compression__r": 1.5}, "it should be a valid integer or a valid tuple"),
        ({"train__steps": {(1, 2): 3}}, "a value should be a number, a text, true or false, a tuple"),
        (
            {
                "model__compression__kind": "tome",
                "model__compression__matching": "frame",
                "model__temporal": "conv",
            },
            'temporal conv relates equal positions of frames: set it to "clip" or "auto"',
        ),
        (INTI | {"model__compression__after": (1, 1), "data__num_frames": 8}, "increasing block numbers"),
        (INTI | {"model__compression__group": 5}, "`model.compression.group` is 5: it should be 2, 3 or 4"),
        (
            INTI | {"model__compression__group": 3},
            "`data.num_frames` is 8: it should be divisible by 3, since `model.compression.group` = 3 frames",
        ),
        (
            INTI | {"model__compression__after": (1, 2), "model__compression__group": 4},
            "it should be divisible by 16",
        ),
        (
            {"model__compression__kind": "tome", "model__compression__group": 3},
            '`model.compression.group` is 3 and `kind` is "tome"',
        ),
        (
            {"model__adaptation": "lora", "model__pretrained": "f", "model__drop_path": 0.1},
            'only "full" and "aim" train the branches',
        ),
        ({"model__pretrained": "f", "model__freeze_blocks": 5}, "it should be at most 4, the depth of tiny"),
        ({"model__freeze_blocks": 2}, "frozen parameters need converted weights"),
        ({"model__freeze": ("tower.blocks.0",)}, "frozen parameters need converted weights"),
        (
            {"model__pretrained": "f", "model__unfreeze_last": 1},
            "set `model.freeze_blocks` to 3",
        ),
        (
            {"model__pretrained": "f", "model__adaptation": "lora", "model__freeze_blocks": 1},
            "To train the last blocks, set `model.unfreeze_last`",
        ),
        ({"mesh__data": -1, "mesh__fsdp": -1}, "at most one may be -1"),
        ({"mesh__tensor": 3}, "it should divide the 4 heads"),
        (
            {"mesh__data": 3},
            "`train.global_batch` over `train.accumulate` is 8: it should be a multiple of 3",
        ),
        ({"mesh__fsdp": 4, "train__accumulate": 4}, "is 2: it should be a multiple of 4"),
        (
            {"mesh__data": 4, "mesh__fsdp": 2, "eval__batch": 20},
            "`eval.batch` is 20: it should be a multiple of 8",
        ),
        ({"hosts__silent_seconds": 1}, "`hosts.silent_seconds` is 1"),
    ],
)
def test_impossible_configs_name_the_key_and_what_is_valid(changes, message):
    with pytest.raises(ConfigError) as caught:
        tiny(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


KEYS = traverse_util.flatten_dict(dataclasses.asdict(config.Config()), sep=".")


@pytest.mark.parametrize("key", KEYS)
def test_every_value_has_a_key(key):
    config.type_of(key)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=20))
def test_a_key_is_either_a_field_or_refused(key):
    if key in KEYS:
        config.type_of(key)
    else:
        with pytest.raises(ConfigError):
            config.type_of(key)


def test_arguments_of_config_files_are_typed_and_checked():
    assert config.parse_arg("seed=3,kind=mean", seed=0, kind="inti") == {"seed": 3, "kind": "mean"}
    assert config.parse_arg("seed=3, kind=a,b,", seed=0, kind="inti") == {"seed": 3, "kind": "a,b"}
    with pytest.raises(ConfigError, match="did you mean `seed`"):
        config.parse_arg("sed=3", seed=0)
    with pytest.raises(ConfigError, match="not of type int"):
        config.parse_arg("seed=x", seed=0)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("False", True, False),
        ("true", False, True),
        ("0", True, False),
        ("2024", "inti", "2024"),
        ("None", "inti", "None"),
        ("1", 0.5, 1.0),
        ("1e-3", 0.5, 1e-3),
        ("(5,8)", (3,), (5, 8)),
        ("((-1,1),(1,1))", (), ((-1, 1), (1, 1))),
        ("[5,8]", (3,), (5, 8)),
        ("5", (3,), (5,)),
        ("3", None, 3),
    ],
)
def test_an_argument_has_the_type_of_its_default(text, default, value):
    found = config.parse_arg(f"seed=1,x={text},kind=mean", x=default, seed=0, kind="")
    assert found == {"x": value, "seed": 1, "kind": "mean"}
    assert type(found["x"]) is type(value)


@pytest.mark.parametrize(
    ("text", "default"), [("maybe", True), ("2", True), ("1.5", 1), ("True", 1), ("", 1)]
)
def test_an_argument_of_another_type_is_refused(text, default):
    with pytest.raises(ConfigError, match=f"'{text}' is not of type {type(default).__name__}"):
        config.parse_arg(f"x={text}", x=default)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.name=2024", "2024"),
        ("data.name=None", "None"),
        ("data.name='2024'", "2024"),
        ("data.flip=true", True),
        ("data.flip=False", False),
        ("model.compression.r=(1,2,3,4)", (1, 2, 3, 4)),
        ("data.resolution=64", 64),
        ("data.resolution=64,32", (64, 32)),
        ("data.resolution=(64, 64)", 64),  # a square is its side
        ("model.compression.r=3", 3),
        ("model.compression.after=3", (3,)),
        ("model.compression.after=1,3", (1, 3)),
        ("model.compression.scales=point,local", ("point", "local")),
        ("train.class_weights=[1,2.5]", (1, 2.5)),
        ("train.class_weights=inverse", "inverse"),
        ("train.learning_rate=1", 1),
        ("model.head.templates=('a {}',)", ("a {}",)),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(tmp_path, override, value):
    settings = config.load_config(write_config(tmp_path / "c.py"), [f"--config.{override}"])
    found = traverse_util.flatten_dict(dataclasses.asdict(settings), sep=".")
    assert found[override.partition("=")[0]] == value


def write_config(path, *lines):
    path.write_text(
        "from inti_jax import config\n\ndef get_config(arg=''):\n    result = config.defaults()\n"
        "    result.update_from_flattened_dict({'model.pretrained': 'random', 'data.name': arg or 'x', "
        "'data.data_dir': 'd', 'train.steps': 4, 'model.compression.kind': 'tome'})\n"
        + "".join(f"    {line}\n" for line in lines)
        + "    return result\n"
    )
    return str(path)


def test_a_config_file_may_set_a_value_of_any_of_its_types(tmp_path):
    spec = write_config(tmp_path / "c.py", "result.model.compression.r = (1, 2, 3, 4)")
    assert config.load_config(spec).model.compression.r == (1, 2, 3, 4)
    again = write_config(tmp_path / "d.py", *(f"result.model.compression.r = {r}" for r in ((1,), 2)))
    assert config.load_config(again).model.compression.r == 2


@pytest.mark.parametrize("directory", ["a:b", "a:b.py:c", "~x"])
def test_a_config_file_may_have_colons_in_its_path(tmp_path, directory):
    (tmp_path / directory).mkdir()
    spec = write_config(tmp_path / directory / "c:d.py")
    assert config.load_config(spec).data.name == "x"
    assert config.load_config(f"{spec}:y").data.name == "y"
    assert config.load_config(f"{spec}:y:z").data.name == "y:z"
    assert config.load_config(f"{spec}:{'y' * 300}").data.name == "y" * 300
    with pytest.raises(UsageError, match=r"a.py: there is no such file"):
        config.load_config(f"{tmp_path / directory}/a.py:y:z")


def test_a_recipe_is_found_by_name_unless_there_is_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a directory is no config file
    assert config.load_config("quickstart:compression=mean").model.compression.kind == "mean"
    with pytest.raises(ConfigError, match="did you mean `compression`"):
        config.load_config("quickstart:compresion=mean")
    (tmp_path / "quickstart").rmdir()
    write_config(tmp_path / "quickstart")
    assert config.load_config("quickstart:mine").data.name == "mine"


def test_what_recipes_share_is_no_recipe():
    assert "common" not in config.recipes() and "k400_vit_b16" in config.recipes()
    with pytest.raises(UsageError, match="common: there is no such file"):
        config.load_config("common")


def test_an_override_goes_into_a_section_that_the_file_leaves_out(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({'data': "
        "{'name': 'x', 'data_dir': 'd'}, 'model': {'pretrained': 'random'}})\n"
    )
    assert config.load_config(str(path), ["--config.train.steps=3"]).train.steps == 3


def test_a_run_from_before_there_were_groups_continues(tmp_path):
    ours = record(tiny(**INTI))
    values = ours.to_json()
    del values["model"]["compression"]["group"]
    earlier = RunRecord.from_json(values, tmp_path)
    assert earlier == ours
    ours.check_continues(earlier, tmp_path)
    larger = record(tiny(**INTI, model__compression__group=4))
    with pytest.raises(ConfigError, match=r"`model\.compression\.group` is 2; here it is 4"):
        larger.check_continues(earlier, tmp_path)
