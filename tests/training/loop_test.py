"""The step and the loop: what one update is, and what survives faults."""

import dataclasses
import functools
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from inti_jax import config
from inti_jax.config import ConfigError, Mesh
from inti_jax.data.codec import decode
from inti_jax.data.dataset import open_configured, open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.models import parameters
from inti_jax.reports import writing
from inti_jax.runs import checkpoint, initial, predictions, state
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop, losses, optim, train_step
from tests.configs import INTI, record, tiny
from tests.processes import environment
from tests.records import computed
from tests.unreported import without_reports

BATCH = 8

pytestmark = pytest.mark.usefixtures("shallow")


def make_batch(mesh, bad=(), videos=BATCH):
    rng = np.random.default_rng(0)
    mask = np.ones(videos, bool)
    mask[list(bad)] = False
    rows = {
        "video": rng.integers(0, 256, (videos, 4, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, videos).astype(np.int32),
        "mask": mask,
        "index": np.arange(videos, dtype=np.int32),
    }
    return sharding.place_batch(rows, mesh)


def run_steps(mesh, batch, steps=2, **changes):
    """The figures of each step, and the state after the last."""
    settings = tiny(**INTI, train__warmup_fraction=0.0, train__label_smoothing=0.1, **changes)
    transform, schedule = optim.make_optimizer(settings.train, 10)
    graphdef = nnx.graphdef(state.abstract_model(record(settings)))
    target = state.abstract_state(record(settings), transform, mesh)
    train_state = initial.initial_state(record(settings), transform, target)
    step_fn = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
    figures = []
    for _ in range(steps):
        train_state, metrics = step_fn(train_state, batch)
        figures.append(jax.device_get(metrics))
    return figures, train_state


@pytest.fixture(scope="module")
def one_device():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    return run_steps(mesh, make_batch(mesh))


@pytest.mark.parametrize(
    "sizes", [Mesh(data=8), Mesh(data=4, fsdp=2), Mesh(data=2, fsdp=2, tensor=2)], ids=str
)
def test_every_mesh_takes_the_same_step(sizes, one_device):
    mesh = sharding.make_mesh(sizes)
    figures, after = run_steps(mesh, make_batch(mesh))
    expected, expected_after = one_device
    for got, wanted in zip(figures, expected, strict=True):
        assert got["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
    # Shards are where the rules put them after the step, too.
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in after.trainable.items()}
    shardings = sharding.parameter_shardings(shapes, mesh)
    for path, leaf in after.trainable.items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
    assert int(after.step) == int(expected_after.step) == 2


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_same_update(accumulate, one_device):
    mesh = sharding.make_mesh(Mesh(data=2), jax.devices()[:2])
    figures, _ = run_steps(mesh, make_batch(mesh), train__accumulate=accumulate)
    for got, wanted in zip(figures, one_device[0], strict=True):
        assert got["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        assert got["top1"] == pytest.approx(wanted["top1"])
        assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_the_parts_are_mixed_as_the_whole_batch_is(one_device):
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    mix = {"train__mix__mixup": 0.8, "train__mix__cutmix": 1.0}
    (whole,), _ = run_steps(mesh, make_batch(mesh), steps=1, **mix)
    (parts,), _ = run_steps(mesh, make_batch(mesh), steps=1, **mix, train__accumulate=4)
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    (unmixed, _), _ = one_device
    assert abs(whole["loss"] - unmixed["loss"]) > 1e-3


def test_accumulation_has_the_model_in_the_program_once():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    products = []
    for accumulate in (1, 4):
        settings = tiny(train__accumulate=accumulate)
        transform, schedule = optim.make_optimizer(settings.train, 10)
        target = state.abstract_state(record(settings), transform, mesh)
        graphdef = nnx.graphdef(state.abstract_model(record(settings)))
        step = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
        products.append(step.lower(target, make_batch(mesh)).as_text().count("stablehlo.dot_general"))
    assert products[0] == products[1] > 10


def test_the_compiler_options_of_the_gestures_change_no_gradient():
    """Compare each of them: oneDNN's wrong ones left loss and gradient norm as they are."""
    own = config.load_config("egogestar").train.compiler_options
    plain, optimized = (_gradients(train__compiler_options=options) for options in ((), own))
    assert own and plain.keys() == optimized.keys()
    for path, expected in plain.items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(optimized[path], expected, atol=1e-4 * largest, err_msg=path)


def _gradients(**changes):
    """AdamW's first averages of the gradients after a step of ST-Adapters and InTI with random parameters."""
    method = {"model__adaptation": "st_adapter", "model__compression__start": "first"}
    settings = tiny(**INTI, **method, model__pretrained="clip.safetensors", data__num_frames=4, **changes)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    shapes, lowered = train_step.lower_step(record(settings), mesh)
    rng = np.random.default_rng(0)

    def random(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / 20, leaf.dtype)

    filled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    trainable, frozen = (jax.tree.map(random, part) for part in (shapes.trainable, shapes.frozen))
    filled = dataclasses.replace(filled, trainable=trainable, frozen=frozen)
    after, _ = lowered.compile()(filled, make_batch(mesh))
    return optax.tree.get(after.opt_state, "mu")


def test_the_step_is_compiled_with_the_runs_own_options(tmp_path):
    options = (f"xla_dump_to={tmp_path}", "xla_dump_hlo_as_text=true")
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    train_step.lower_step(record(tiny(train__compiler_options=options)), mesh)[1].compile()
    assert list(tmp_path.glob("*train_step*.txt"))


def test_masked_rows_weigh_nothing():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    batch = make_batch(mesh, bad=[1, 6])
    garbage = batch | {"video": batch["video"].at[jnp.array([1, 6])].set(255)}
    (first, *_), _ = run_steps(mesh, batch, steps=1)
    (second, *_), _ = run_steps(mesh, garbage, steps=1)
    assert first["loss"] == second["loss"] and first["grad_norm"] == second["grad_norm"]
    assert first["bad"] == 2
    # The mean is over the rows that count, not over the batch.
    (third, *_), _ = run_steps(mesh, make_batch(mesh), steps=1)
    assert first["loss"] != third["loss"] and 1.5 < first["loss"] < 4


def test_class_weights_are_factors_on_each_videos_loss():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    batch = make_batch(mesh, bad=[1, 6])
    weights = np.linspace(0.0, 2.0, 10, dtype=np.float32)
    settings = tiny(**INTI, train__warmup_fraction=0.0)
    run_record = record(settings)
    graphdef = nnx.graphdef(state.abstract_model(run_record))
    transform, schedule = optim.make_optimizer(settings.train, 10)
    target = state.abstract_state(run_record, transform, mesh)
    train_state = initial.initial_state(run_record, transform, target)
    params = {**train_state.trainable, **train_state.frozen}
    logits = jax.jit(lambda params, video: parameters.merge(graphdef, params)(video))(params, batch["video"])
    labels, kept = np.asarray(batch["label"]), np.asarray(batch["mask"])
    each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(BATCH), labels]
    expected = (weights[labels] * each)[kept].sum() / kept.sum()
    norms = []
    for accumulate in (1, 2):
        step = train_step.compile_step(
            tiny(**INTI, train__accumulate=accumulate), graphdef, transform, schedule, target, mesh, weights
        )
        # The step may use its state's memory again.
        _, metrics = step(jax.tree.map(jnp.copy, train_state), batch)
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
        norms.append(float(metrics["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_label_smoothing_spreads_the_target():
    logits = jnp.asarray([[2.0, 0.0, 0.0, 0.0]])
    log_probabilities = jax.nn.log_softmax(logits)[0]
    expected = -(0.925 * log_probabilities[0] + 0.025 * log_probabilities[1:].sum())
    loss = losses.cross_entropy(logits, jnp.asarray([0]), 0.1)
    np.testing.assert_allclose(loss[0], expected, rtol=1e-5)


def test_bfloat16_and_remat_train():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    figures, after = run_steps(mesh, make_batch(mesh), steps=3, train__dtype="bfloat16", model__remat=True)
    assert figures[-1]["loss"] < figures[0]["loss"]
    assert all(leaf.dtype == jnp.float32 for leaf in after.trainable.values())


# The loop, in this process.


def test_a_run_leaves_all_its_files_and_is_continued_only_by_its_own_config(
    motion_data, tmp_path, monkeypatch
):
    changes = INTI | {"train__global_batch": 16}
    settings = tiny(motion_data, **changes)
    loop.train(settings, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "report.html"} <= files
    assert RunRecord.read(tmp_path).config == settings
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if r["split"] == "train"] == [1, 2, 3, 4]
    (validation,) = [r for r in records if r["split"] == "val"]
    assert validation["evaluated"] == 20 and validation["missing"] == 0 and validation["step"] == 4
    assert validation["dataset"] == RunRecord.read(tmp_path).dataset.sha256

    before = (tmp_path / "metrics.jsonl").read_text()
    monkeypatch.setattr(writing, "write_own", lambda workdir: None)
    # What a smaller mesh needs may differ.
    less_memory = tiny(motion_data, **changes, model__remat=True, train__accumulate=2)
    loop.train(less_memory, tmp_path)
    with pytest.raises(ConfigError, match=r"`train.learning_rate` is 0.001; here it is 0.1"):
        loop.train(tiny(motion_data, **changes, train__learning_rate=0.1), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert RunRecord.read(tmp_path).config == less_memory


@without_reports()
def test_a_finished_run_trains_longer_by_the_schedule_of_the_longer_run(motion_data, tmp_path, caplog):
    run_dir, killed = tmp_path / "run", tmp_path / "killed"
    loop.train(tiny(motion_data, train__steps=2), run_dir)
    first = computed(run_dir)
    longer = tiny(motion_data, train__steps=0, train__epochs=1.2)  # 6 steps
    with caplog.at_level("INFO"):
        loop.train(longer, run_dir)
    (said,) = [text for text in caplog.messages if "instead of 2" in text]
    before, now = (optim.make_schedule(longer.train, steps) for steps in (2, 6))
    assert f"the learning rate was {before(1):.3g} at step 2; from step 3 on" in said
    assert f"of a run of 6 steps, from {now(2):.3g} there to 0 at the end" in said
    records = computed(run_dir)
    assert records[: len(first)] == first
    rates = {r["step"]: r["learning_rate"] for r in records if r["split"] == "train"}
    np.testing.assert_allclose(
        [rates[step] for step in range(1, 7)], [*map(before, (0, 1)), *map(now, range(2, 6))], rtol=1e-5
    )
    assert [r["step"] for r in records if r["split"] == "val"] == [2, 6]
    assert RunRecord.read(run_dir).config == longer

    # As a kill at step 5 leaves it.
    shutil.copytree(run_dir, killed)
    shutil.rmtree(killed / "checkpoints" / "6")
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))
    loop.train(longer, killed)
    assert computed(killed) == records

    with pytest.raises(
        ConfigError, match=r"`train\.steps` asks for 5 steps, but .*run has already trained 6: ask for"
    ):
        loop.train(tiny(motion_data, train__steps=5), run_dir)
    assert computed(run_dir) == records and RunRecord.read(run_dir).config == longer


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(motion_data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        losses, "cross_entropy", lambda logits, labels, smoothing: jnp.full(labels.shape, jnp.nan)
    )
    with pytest.raises(UserError, match=r"step 1: the loss is nan.*train-00") as caught:
        loop.train(tiny(motion_data), tmp_path)
    assert "\n" not in str(caught.value)
    (fault,) = [r for r in read_metrics(tmp_path) if r["split"] == "fault"]
    assert len(fault["ids"]) == 8 and all(name.startswith("train-00") for name in fault["ids"])
    assert checkpoint.find(tmp_path) is None  # nothing that is not finite was saved
    # What the fault left stays when the run is started again.
    with pytest.raises(UserError):
        loop.train(tiny(motion_data), tmp_path)
    assert len([r for r in read_metrics(tmp_path) if r["split"] == "fault"]) == 2


def test_a_short_run_is_logged_evaluated_on_its_way_and_reported(motion_data, tmp_path):
    settings = tiny(
        motion_data,
        train__steps=0,
        train__epochs=0.6,
        train__log_every_steps=2,
        train__eval_every_steps=2,
        train__warmup_fraction=0.0,
    )
    loop.train(settings, tmp_path)
    records = read_metrics(tmp_path)
    records = [r for r in records if r["split"] not in ("compile", "restart")]
    assert [(r["step"], r["split"]) for r in records] == [(2, "train"), (2, "val"), (3, "train"), (3, "val")]
    rates = [r["learning_rate"] for r in records if r["split"] == "train"]
    np.testing.assert_allclose(
        rates, [1e-3 * (1 + np.cos(np.pi * done / 3)) / 2 for done in (1, 2)], rtol=1e-5
    )
    assert (tmp_path / "report.html").exists()


def test_too_many_clips_that_do_not_decode_end_the_run(motion_data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise decode.DecodeError("no frame")

    monkeypatch.setattr("inti_jax.data.dataset.open_dataset", functools.partial(open_dataset, decoder=broken))
    with pytest.raises(UserError, match=r"step 1: 8 of the 8 clips so far did not decode.*max_bad_share"):
        loop.train(tiny(motion_data), tmp_path)


def test_a_mistake_in_the_weights_leaves_no_workdir(motion_data, tmp_path):
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        loop.train(tiny(motion_data, model__pretrained="absent.safetensors"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["xla_no_such=1", "xla_cpu_enable_fast_math=maybe"])
def test_an_option_that_the_compiler_does_not_have_leaves_no_workdir(motion_data, tmp_path, option):
    settings = tiny(motion_data, train__steps=1, train__compiler_options=(option,))
    with pytest.raises(ConfigError, match=f"`train.compiler_options`.*{option.split('=')[0]}"):
        loop.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_cannot_be_mirrored_leave_no_workdir(motion_data, tmp_path, monkeypatch):
    def with_other_labels(*arguments):
        dataset = open_configured(*arguments)
        dataset.labels = ("move left", *dataset.labels[1:])
        return dataset

    monkeypatch.setattr(loop, "open_configured", with_other_labels)
    with pytest.raises(UserError, match=r"`data\.flip` cannot mirror label `move left`"):
        loop.train(tiny(motion_data, data__flip=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(motion_data, tmp_path, monkeypatch):
    """Even where another one, of more views, was made of that step by `main --mode eval`."""
    settings = tiny(motion_data)
    workdir = tmp_path / "a$5_{$^b"  # which is no formula, and has to be drawn
    loop.train(settings, workdir)
    assert (workdir / "report.html").exists()
    monkeypatch.setattr(writing, "write_own", lambda workdir: None)
    whole = [r for r in read_metrics(workdir) if r["split"] not in ("compile", "restart")]
    *before, own = whole
    other = own | {"views": 3, "clips": 3}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in (*before, other)))
    loop.train(settings, workdir)
    again = [r for r in read_metrics(workdir) if r["split"] not in ("compile", "restart")]
    assert again[:-1] == [*before, other]
    assert again[-1] | {"seconds": 0} == own | {"seconds": 0}
    loop.train(settings, workdir)  # and a finished run stays as it is
    assert [r for r in read_metrics(workdir) if r["split"] not in ("compile", "restart")] == again


# The main job, as processes that are killed.


def start(workdir, motion_data):
    return subprocess.Popen(
        [
            sys.executable, "-m", "inti_jax.main", "--config", "configs/quickstart.py:compression=inti",
            "--workdir", str(workdir), f"--config.data.data_dir={motion_data}",
            "--config.train.steps=20", "--config.train.global_batch=4", "--config.data.num_frames=2",
            "--config.train.log_every_steps=1", "--config.train.eval_every_steps=0",
            "--config.checkpoint.every_steps=5", "--config.eval.batch=20", "--config.model.scan=on",
        ],
        env=environment(1), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def losses_of(workdir):
    return {r["step"]: r["loss"] for r in read_metrics(workdir) if r["split"] == "train"}


def test_a_killed_run_goes_on_to_the_last_bit(motion_data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, motion_data)
    assert process.wait(300) == 0, process.stderr.read()

    process = start(killed, motion_data)
    deadline = time.monotonic() + 300
    while max(losses_of(killed), default=0) < 13:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A kill may leave half a line.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "spl')

    process = start(killed, motion_data)
    assert process.wait(300) == 0
    # 10, unless the kill came while that one was still being written.
    assert re.search(r"resuming from the checkpoint of step (5|10)\n", process.stderr.read())
    expected = losses_of(whole)
    assert list(expected) == list(range(1, 21))
    assert losses_of(killed) == expected
    blends = [[r for r in computed(path) if r["split"] == "blends"] for path in (whole, killed)]
    assert blends[0] == blends[1] and len(blends[0]) == 20
    lines = list(map(json.loads, (killed / "metrics.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines if line["split"] in ("train", "val")] == [*range(1, 21), 20]
    assert [line["step"] for line in lines if line["split"] == "restart"] in ([5], [10])
    final = [[r for r in read_metrics(path) if r["split"] == "val"][-1]["top1"] for path in (whole, killed)]
    assert final[0] == final[1]


@without_reports()
def test_evaluations_on_the_way_are_of_some_videos_share_the_workers_and_change_no_loss(
    motion_data, trained_run, tmp_path, monkeypatch
):
    seen = []
    place = sharding.place_batch

    def counted(batch, mesh):
        seen.append(("missing" in batch, {child.pid for child in multiprocessing.active_children()}))
        return place(batch, mesh)

    monkeypatch.setattr(sharding, "place_batch", counted)
    changes = {"data__workers": 2, "data__threads": 1, "eval__clips": 2, "train__eval_every_steps": 1}
    changes |= {"train__eval_videos": 10}
    loop.train(tiny(motion_data, **INTI, **changes), tmp_path / "run")
    assert len({process for _, processes in seen for process in processes}) == 2
    assert {evaluation for evaluation, _ in seen} == {True, False}
    assert not multiprocessing.active_children()
    ours, theirs = read_metrics(tmp_path / "run"), read_metrics(trained_run)
    for split, figure, count in (("train", "loss", 4), ("val", "top1", 1)):
        values = [
            [(record["step"], record[figure]) for record in records if record["split"] == split][-count:]
            for records in (ours, theirs)
        ]
        assert values[0] == values[1]
    evaluations = [record for record in ours if record["split"] == "val"]
    assert [(each["step"], each.get("subset"), each["evaluated"]) for each in evaluations] == [
        (1, 10, 10), (2, 10, 10), (3, 10, 10), (4, None, 20),
    ]  # fmt: skip
    assert [place.step for place in predictions.find(tmp_path / "run")] == [4]
