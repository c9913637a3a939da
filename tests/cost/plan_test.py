"""What `plan` says, against published costs, XLA's own counts, and every schedule tried one by one."""

import dataclasses
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from inti_jax.config import ConfigError, Model, backbones
from inti_jax.cost import activations, plan
from inti_jax.data.manifest import Manifest
from inti_jax.errors import UsageError
from inti_jax.models import freezing, parameters, sliding
from inti_jax.runs import state
from tests import configs
from tests.commands import call
from tests.main_test import CONFIG

METHODS = ("full", "linear", "aim", "st_adapter", "zero_i2v", "lora")
COMPRESSORS = ("none", "inti", "mean", "static", "drop", "tome")


def settings(method="full", kind="none", after=None, frames=8, name="clip_vit_b16", **changes):
    if after is None:
        after = () if kind in ("none", "tome") else (1,)
    values = {
        "model__backbone": name,
        "model__pretrained": "random" if method == "full" else "absent.safetensors",
        "model__adaptation": method,
        "model__compression__kind": kind,
        "model__compression__after": after,
        "data__name": "kinetics400",
        "data__num_frames": frames,
        "data__resolution": backbones.BACKBONES[name].resolution,
    }
    return configs.tiny(**values | changes)


def model_of(config, classes=400, folded=False):
    return state.abstract_model(configs.record(config, classes), folded=folded)


def plan_of(*arguments, **changes):
    return plan.make_plan(plan.record_of(settings(*arguments, **changes)))[0]


@pytest.fixture
def shallow(monkeypatch):
    """B/16 and tiny as they are, but of few blocks: what a block costs is what is tested."""

    def cut(layers, name="clip_vit_b16"):
        size = dataclasses.replace(backbones.BACKBONES[name], layers=layers)
        monkeypatch.setitem(backbones.BACKBONES, name, size)

    return cut


# The published tables, which sum over 3 views. The classifier's cost vanishes in these figures.


@pytest.mark.parametrize(("frames", "gmacs"), [(8, 606), (16, 1214)])
def test_aim_costs_what_its_authors_say(frames, gmacs):
    found = plan_of("aim", frames=frames, eval__crops=3)
    assert found.views == 3 and found.gmacs_per_video == pytest.approx(gmacs, rel=1e-3)
    assert found.gmacs_per_video == 3 * found.gmacs_per_view
    assert found.gmacs_per_view_training == found.gmacs_per_view  # GELU does not fold


@pytest.mark.parametrize(
    ("name", "frames", "gmacs"),
    [("clip_vit_b16", 8, 422), ("clip_vit_l14", 8, 1946), ("clip_vit_l14", 32, 7783)],
)
def test_zero_i2v_costs_what_its_authors_say(name, frames, gmacs):
    """They count 5 operations for each element that a LayerNorm sees, and the folded model."""
    found = model_of(settings("zero_i2v", frames=frames, name=name))
    costs = found.block_costs(frames, folded=True)
    seen = sum(2 * cost.frames * cost.tokens for cost in costs) + frames * costs[0].tokens
    total = found.macs(frames, folded=True) + 5 * seen * found.size.width
    assert 3 * total / 1e9 == pytest.approx(gmacs, abs=0.6)


def test_st_adapter_adds_what_its_authors_say():
    found, bare = plan_of("st_adapter"), plan_of("linear")
    assert found.gmacs_per_view / bare.gmacs_per_view == pytest.approx(1.079, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "after", "share"), [("clip_vit_b16", (3,), 0.6275), ("clip_vit_l14", (6,), 0.6257)]
)
def test_the_share_left_is_the_published_one(name, after, share):
    found = plan_of("full", "drop", after=after, name=name)
    assert found.share == pytest.approx(share, abs=5e-5)
    assert found.gmacs_per_view / found.gmacs_per_view_uncompressed == pytest.approx(found.share)


# XLA's count of the forward pass. It is taken of the lowered module, before compilation, which fuses and
# rearranges what is elementwise but leaves the matrix products, nearly all there is: the compiled ones agree.


def lower(model, frames):
    graphdef, params = nnx.split(model)
    video = jax.ShapeDtypeStruct((1, frames, *model.size.height_width, 3), jnp.uint8)
    return jax.jit(lambda params, video: nnx.merge(graphdef, params)(video)).lower(params, video)


def counted(stage):
    return stage.cost_analysis()["flops"] / 2


@functools.cache
def both_counts(method, kind, folded=False):
    """XLA's count and ours of B/16 with 2 blocks, of which a compressor lies between, and 4 frames."""
    model = model_of(settings(method, kind, frames=4), folded=folded)
    return counted(lower(model, 4)), model.macs(4, folded=folded)


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_cost_is_what_xla_counts(method, kind, shallow):
    shallow(2)
    theirs, ours = both_counts(method, kind)
    assert theirs == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("kind", ["inti", "tome"])
def test_the_cost_for_frames_that_are_not_square_is_what_xla_counts(kind, shallow):
    shallow(4)
    config = settings("st_adapter", kind, frames=4, data__resolution=(112, 288))
    model = model_of(config)
    assert (model.tower.grid, model.tower.tokens) == ((7, 18), 127)
    assert counted(lower(model, 4)) == pytest.approx(model.macs(4), rel=0.01)
    found = plan.make_plan(plan.record_of(config))[0]
    assert found.gmacs_per_view_training == pytest.approx(model.macs(4) / 1e9)
    assert "4 frames of 112 x 288," in plan.render(found)


@pytest.mark.parametrize(
    ("method", "kind", "changes"),
    [
        ("full", "inti", {}),
        ("st_adapter", "inti", {}),
        ("full", "tome", {"model__compression__matching": "clip", "model__compression__after": (3,)}),
    ],
)
def test_a_prediction_in_a_stream_costs_what_xla_counts_of_both_programs(method, kind, changes, shallow):
    shallow(4)
    model = model_of(settings(method, kind, frames=4, **changes), folded=True)
    graphdef, params = nnx.split(model)

    def lowered(function, *arguments):
        return jax.jit(lambda params, *rest: function(nnx.merge(graphdef, params), *rest)).lower(
            params, *arguments
        )

    part = jax.ShapeDtypeStruct((2, *model.size.height_width, 3), jnp.uint8)
    enters = lowered(sliding.enter, part)
    kept = (enters.out_info,) * 2
    answers = lowered(lambda model, *kept: sliding.logits(model, kept, 4), *kept)
    assert counted(enters) + counted(answers) == pytest.approx(sliding.hop_macs(model, 4, 2), rel=0.01)


@pytest.mark.parametrize("method", ["zero_i2v", "lora"])
def test_a_folded_model_costs_what_xla_counts_of_it(method, shallow):
    shallow(2)
    theirs, ours = both_counts(method, "none", folded=True)
    assert theirs == pytest.approx(ours, rel=0.01)
    assert ours == both_counts("full", "none")[1]


@pytest.mark.parametrize(("method", "kind"), [("aim", "inti"), ("zero_i2v", "tome")])
def test_xla_counts_the_same_when_it_has_compiled(method, kind, shallow):
    shallow(2)
    lowered = lower(model_of(settings(method, kind, frames=2)), 2)
    assert counted(lowered.compile()) == pytest.approx(counted(lowered), rel=0.01)


@pytest.mark.parametrize("method", ["zero_i2v", "lora"])
def test_what_folds_costs_nothing_at_inference(method, shallow):
    shallow(2)
    found, plain = plan_of(method), plan_of("full")
    assert found.gmacs_per_view == plain.gmacs_per_view < found.gmacs_per_view_training
    for block, bare in zip(found.blocks, plain.blocks, strict=True):
        assert block.gmacs == bare.gmacs < block.gmacs_training
        assert block.added_params > 0 == bare.added_params


# Activations: what the backward pass keeps.


def kept(method, kind="none", frames=2, **changes):
    config = settings(method, kind, frames=frames, name="tiny", **changes)
    return activations.saved(model_of(config), config.model, frames)


def test_nothing_is_kept_below_the_first_trained_parameter():
    frozen, inti, conv = kept("linear"), kept("linear", "inti", after=(2,)), kept("st_adapter")
    assert frozen.embedding == 0 and set(frozen.blocks) == {0} and frozen.head > 0
    assert inti.embedding == inti.blocks[0] == 0 and min(inti.blocks[1:]) > 0
    assert 0 < conv.blocks[0] < conv.blocks[1] == conv.blocks[2]


def test_a_recomputed_block_keeps_its_input_alone():
    found = kept("full", model__remat=True)
    assert set(found.blocks) == {2 * 17 * 96 * 4}


def test_the_embedding_keeps_pixels_as_bytes_and_the_input_of_its_norm():
    assert kept("full").embedding == 2 * 32 * 32 * 3 + 2 * 17 * 96 * 4


def test_less_is_kept_where_less_trains_or_in_bfloat16():
    full = kept("full")
    assert kept("lora").blocks[1] < full.blocks[1]
    assert kept("full", train__dtype="bfloat16").blocks[1] < full.blocks[1]
    halved = kept("full", "drop", after=(2,))
    assert halved.blocks[2] * 2 == full.blocks[2] and halved.blocks[1] == full.blocks[1]


def gradient(model, method, frames, transform):
    """`transform` of the loss as a function of what trains, and all it takes as shapes."""
    graphdef, params = nnx.graphdef(model), parameters.parameter_shapes(model)
    trained = {path: params[path] for path in freezing.trained(Model(adaptation=method), params)}
    frozen = {path: shape for path, shape in params.items() if path not in trained}
    video = jax.ShapeDtypeStruct((1, frames, *model.size.height_width, 3), jnp.uint8)

    def function(trained, frozen, video):
        loss = lambda trained: parameters.merge(graphdef, {**trained, **frozen})(video).sum()  # noqa: E731
        return transform(loss, trained)

    return function, (trained, frozen, video)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_parts_keep_what_the_whole_model_keeps(method, remat, shallow):
    """All that the backward pass of the model refers to, in one piece, and that comes from the video."""
    shallow(3, "tiny")
    model = model_of(settings(method, "inti", name="tiny", model__remat=remat))
    function, arguments = gradient(model, method, 8, lambda f, x: jax.tree.leaves(jax.vjp(f, x)[1]))
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    computed = {jaxpr.invars[-1]}
    for equation in jaxpr.eqns:
        if any(isinstance(var, core.Var) and var in computed for var in equation.invars):
            computed.update(equation.outvars)
    kept = computed & {var for var in jaxpr.outvars if isinstance(var, core.Var)}
    saved = activations.saved(model, Model(adaptation=method), 8)
    found = saved.embedding + sum(saved.blocks) + saved.head
    assert found == pytest.approx(sum(var.aval.size * var.aval.dtype.itemsize for var in kept), rel=0.03)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_activations_are_of_the_magnitude_that_xla_plans(method, shallow):
    """What two more blocks of B/16 add to the temporaries of the compiled gradient.

    Those are more: room to work in, and on CPU a part of what should be computed again is kept after all.
    """

    def planned(layers):
        shallow(layers)
        model = model_of(settings(method, frames=2))
        function, arguments = gradient(model, method, 2, lambda f, x: jax.grad(f)(x))
        plan = jax.jit(function).lower(*arguments).compile().memory_analysis()
        return np.array(
            [plan.temp_size_in_bytes, sum(activations.saved(model, Model(adaptation=method), 2).blocks)]
        )

    theirs, ours = planned(4) - planned(2)
    assert 0.8 * ours < theirs < 4 * ours


# Schedules that fit a budget.


@functools.cache
def tiny_macs(after, frames, group=2, kind="inti"):
    changes = {"model__compression__group": group, "model__compression__scales": ("global",)}
    config = settings("lora", kind if after else "none", after, frames, "tiny", **changes)
    return model_of(config).macs(frames, folded=True)


def every_schedule(frames, budget, kind="inti"):
    """Each schedule of `tiny`, of 4 blocks, that fits, by building its model."""
    for group, count in itertools.product((2, 3, 4), (1, 2, 3)):
        for after in itertools.combinations(range(1, 4), count):
            if frames % group**count == 0:
                share = tiny_macs(after, frames, group, kind) / tiny_macs((), frames)
                if share <= budget:
                    yield group, after, share


@pytest.mark.parametrize(
    ("frames", "budget", "kind"),
    [
        (8, 1.0, "none"),
        (8, 0.55, "inti"),
        (12, 0.8, "inti"),
        (9, 0.7, "none"),
        (5, 0.9, "none"),
        (8, 0.1, "inti"),
        (12, 0.5, "mean"),
    ],
)
def test_a_budget_lists_every_schedule_within_it(frames, budget, kind):
    changes = {"model__compression__scales": ("global",)}
    config = settings("lora", kind, () if kind == "none" else (2,), frames, "tiny", **changes)
    _, found = plan.make_plan(plan.record_of(config), budget)
    searched = "inti" if kind == "none" else kind
    assert found.share == budget and found.compression == searched
    expected = set(every_schedule(frames, budget, searched))
    assert {(one.group, one.after, one.share) for one in found.schedules} == expected
    for _, alike in itertools.groupby(found.schedules, lambda one: (one.group, len(one.after))):
        shares = [one.share for one in alike]
        assert shares == sorted(shares, reverse=True) and all(share <= budget for share in shares)


def test_a_budget_gives_the_best_of_many():
    _, found = plan.make_plan(plan.record_of(settings("full", "inti", after=(3,))), 0.63)
    by_count = [
        list(group)
        for _, group in itertools.groupby(found.schedules, lambda one: (one.group, len(one.after)))
    ]
    assert [len(group) for group in by_count] == [3, 10, 10, 6]
    assert by_count[0][0].after == (3,)
    assert {one.after for one in by_count[1][:2]} == {(4, 10), (5, 8)}
    assert [one.group for one in by_count[3]] == [4] * 6 and by_count[3][0].after == (6,)
    for one in found.schedules:  # all are valid configs
        changes = {"model__compression__group": one.group}
        assert settings("full", "inti", one.after, **changes).model.compression.after == one.after


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_plan_of_a_schedule_has_the_share_in_the_budgets_list(family, monkeypatch):
    size = dataclasses.replace(backbones.BACKBONES["tiny"], **configs.FAMILIES[family])
    monkeypatch.setitem(backbones.BACKBONES, "tiny", size)
    config = settings("aim", "static", (1, 2), 9, "tiny", model__compression__group=3)
    found, listed = plan.make_plan(plan.record_of(config), 0.6)
    assert (found.compression, found.group, found.after) == ("static", 3, (1, 2))
    assert [block.frames for block in found.blocks] == [9, 3, 1, 1]
    assert {one.after: one.share for one in listed.schedules}[(1, 2)] == found.share
    parts = found.embedding.gmacs + sum(block.gmacs for block in found.blocks) + found.head.gmacs
    assert parts == pytest.approx(found.gmacs_per_view)
    lines = plan.render_budget(listed).splitlines()
    assert any(line.startswith(f"group=3 after=(1, 2)  {100 * found.share:.2f} %") for line in lines)
    assert "tiny, aim, compression static (group 3): 9 frames" in plan.render(found)


def test_a_budget_for_tome_lists_how_many_patches_to_merge():
    changes = {"model__compression__after": (1, 3), "model__backbone": "tiny", "data__resolution": 32}
    config = settings("full", "tome", **changes)
    _, found = plan.make_plan(plan.record_of(config), 0.95)
    whole = model_of(settings("full", name="tiny")).macs(8)
    shares = {
        r: model_of(settings("full", "tome", model__compression__r=r, **changes)).macs(8) / whole
        for r in range(9)
    }
    expected = sorted(((share, r) for r, share in shares.items() if share <= 0.95), reverse=True)
    assert [(one.share, one.r) for one in found.schedules] == expected and expected
    assert found.compression == "tome"


# The command.


def test_json_is_all_there_is_on_stdout():
    process = call("plan", "--config", f"{CONFIG}:compression=inti", "--json", "--budget", "0.6")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    keys = "gmacs_per_view gmacs_per_view_training gmacs_per_view_uncompressed share params_total"
    assert {*keys.split(), "params_trainable", "blocks", "views", "gmacs_per_video"} <= found.keys()
    parts = [found["embedding"], *found["blocks"], found["head"]]
    for total, key in (("gmacs_per_view", "gmacs"), ("activation_mib", "activation_mib")):
        assert sum(part[key] for part in parts) == pytest.approx(found[total])
    assert [(block["index"], block["frames"], block["tokens"]) for block in found["blocks"]] == [
        (1, 8, 17),
        (2, 4, 17),
        (3, 4, 17),
        (4, 4, 17),
    ]
    assert found["blocks"][0]["added_params"] == 41922 and found["head"]["added_params"] == 970
    assert found["params_total"] == found["params_trainable"] == 510796
    assert found["trained_file_mib"] == 4 * 510796 / 2**20
    assert found["share"] == pytest.approx(found["gmacs_per_view"] / found["gmacs_per_view_uncompressed"])
    # Half a window is new, and no block relates frames. The classifier is computed for each window.
    assert (found["stream"]["every"], found["stream"]["blocks_once"]) == (4, 4)
    assert found["stream"]["share"] == pytest.approx(0.5, rel=1e-4)
    assert found["budget"]["share"] == 0.6
    assert all(one["share"] <= 0.6 and one["after"] for one in found["budget"]["schedules"])


def test_the_table_has_a_row_for_each_part():
    process = call(
        *("plan", "--config", f"{CONFIG}:compression=inti", "--config.eval.crops=3", "--budget", "0.2"),
        *("--every", "2"),
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    starts = ("embedding", "block 1, inti", "block 2 ", "block 3", "block 4", "head", "one view", "a video")
    starts += ("in a stream  0.010817 GMACs a prediction, every 2 frames: 25.00 % of a view",)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1
    assert "in 3 views" in process.stdout and lines[-1].endswith("without compression: none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "--budget is 0.0: it should be a share, above 0 and up to 1"),
        (["--budget", "2"], "--budget is 2.0"),
        (["--budget", "nan"], "--budget is nan"),
        (["--budget", "much"], "invalid float value: 'much'"),
        (["--classes", "0"], "--classes is 0"),
        (["--every", "3"], "`every` is 3: this model takes a multiple of 2, since its compressors make 2"),
        (["--config.data.name=mine"], "give --classes K"),
        (["--config.model.compression.after=(9,)"], "the depth of tiny"),
        (["--checkpoint", "runs/mine"], "name the model with --config or with --checkpoint, one of the two"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message):
    process = call("plan", "--config", CONFIG, *arguments)
    assert process.returncode == 2 and process.stdout == ""
    assert message in process.stderr.strip().splitlines()[-1] and "Traceback" not in process.stderr


# How many classes, and which backbone.


def test_the_number_of_classes_is_the_prepared_datasets(tmp_path, caplog):
    config = settings(name="tiny", data__name="mine", data__data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="give --classes"):
        plan.record_of(config)
    assert len(plan.record_of(config, 7).dataset.labels) == 7
    (tmp_path / "mine" / "1.0.0").mkdir(parents=True)
    Manifest.of("mine", "1.0.0", ("a", "b", "c"), {}, "").write(tmp_path / "mine" / "1.0.0")
    assert all(len(plan.record_of(config, given).dataset.labels) == 3 for given in (7, None))


@pytest.mark.parametrize(("name", "classes"), [("kinetics400", 400), ("ssv2", 174), ("diving48", 48)])
def test_official_numbers_of_classes_are_known(name, classes):
    found = plan_of(name="tiny", data__name=name)
    assert found.classes == classes and found.head.added_params == 97 * classes
    assert plan.make_plan(plan.record_of(settings(name="tiny", data__name=name), 5))[0].classes == 5


def test_weights_need_not_be_there(shallow, tmp_path):
    shallow(1)
    found = plan_of("linear", model__head__init="text")
    assert found.head.added_params == 768 * 512 + 512 * 400 + 1
    assert found.params_trainable == found.head.added_params
    with pytest.raises(UsageError, match="of the space that tiny shares with texts"):
        plan_of("linear", name="tiny", model__head__init="text")
    with pytest.raises(
        ConfigError, match=r"`model\.pretrained`: .* has no config\.json"
    ):  # what is there is read
        plan_of("linear", name="tiny", model__pretrained=str(tmp_path))


def test_parameters_that_train_are_counted():
    found = plan_of("lora", "inti", name="tiny")
    lora = 2 * 2 * 8 * 96  # query and value, down and up
    assert [block.added_params for block in found.blocks] == [lora + 41922, lora, lora, lora]
    added = sum(block.added_params for block in found.blocks) + found.head.added_params
    assert found.params_trainable == added < found.params_total
    shapes = parameters.parameter_shapes(model_of(settings("lora", "inti", name="tiny")))
    assert found.params_total == sum(math.prod(shape.shape) for shape in shapes.values())
