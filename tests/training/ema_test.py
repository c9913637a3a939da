"""The moving average of the weights (`train.ema`), from the step to the commands that load a run."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx

import inti_jax
from inti_jax import config, predict
from inti_jax.config import Mesh
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import evaluate
from inti_jax.reports import writing
from inti_jax.runs import checkpoint, evaluations, initial, layout, state, trained
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.evaluations import Setting
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.training import loop, optim, train_step
from tests.commands import convert
from tests.configs import INTI, record, tiny
from tests.pretrained.weights import write_tiny
from tests.records import computed

ONE = sharding.make_mesh(Mesh(), jax.devices()[:1])


pytestmark = pytest.mark.usefixtures("shallow", "unreported")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "clip.safetensors")


def lora(motion_data, weights, **changes):
    """A run in which the tower does not train."""
    return tiny(
        motion_data,
        **INTI,
        model__pretrained=str(weights),
        model__adaptation="lora",
        train__learning_rate=0.01,
        **changes,
    )


ON = {"train__ema": 0.9, "train__eval_every_steps": 2}


@pytest.fixture(scope="module")
def plain(motion_data, weights, tmp_path_factory):
    """A run without an average."""
    path = tmp_path_factory.mktemp("plain")
    loop.train(lora(motion_data, weights), path)
    return path


@pytest.fixture(scope="module")
def run(motion_data, weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("ema")
    loop.train(lora(motion_data, weights, **ON), path)
    return path


def video():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def averaged(before, after, decay, done):
    """The average after one more step, of which `done` were finished before."""
    keep = min(decay, (1 + done) / (10 + done))
    return {path: keep * before[path] + (1 - keep) * after[path] for path in before}


# The step.


def kept(train_state):
    """A copy, so that the memory of the state itself can be used again."""
    return jax.device_get(jax.tree.map(jnp.copy, train_state))


def steps_of(mesh, settings):
    """The states of the start and of three steps, as NumPy arrays, with the last one itself."""
    transform, schedule = optim.make_optimizer(settings.train, 10)
    graphdef = nnx.graphdef(state.abstract_model(record(settings)))
    target = state.abstract_state(record(settings), transform, mesh)
    current = initial.initial_state(record(settings), transform, target)
    step = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
    rng = np.random.default_rng(0)
    rows = {
        "video": rng.integers(0, 256, (8, 4, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "mask": np.ones(8, bool),
        "index": np.arange(8, dtype=np.int32),
    }
    states = [kept(current)]
    for _ in range(3):
        before = current
        current, _ = step(current, sharding.place_batch(rows, mesh))
        assert all(leaf.is_deleted() for leaf in before.ema.values())  # its memory is used again
        states.append(kept(current))
    return states, current


def test_the_average_is_the_recurrence_and_is_sharded():
    """That it is the same on one device is tested with what two processes compute (hosts_test.py)."""
    settings = tiny(**INTI, train__ema=0.15, train__warmup_fraction=0.0, train__learning_rate=0.01)
    states, last = steps_of(sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=2)), settings)
    expected = states[0].trainable
    for done, after in enumerate(states[1:]):
        assert after.ema.keys() == after.trainable.keys()
        expected = averaged(expected, after.trainable, 0.15, done)
        for path, leaf in after.ema.items():
            assert leaf.dtype == np.float32
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert np.abs(after.ema["head.kernel"] - after.trainable["head.kernel"]).max() > 1e-3
    for path, leaf in last.ema.items():
        assert leaf.sharding.is_equivalent_to(last.trainable[path].sharding, leaf.ndim), path


def test_the_shapes_of_a_state_count_it_for_what_trains_alone():
    settings = tiny(model__pretrained="absent", model__adaptation="linear", train__ema=0.9)
    found = state.abstract_state(record(settings), optim.make_optimizer(settings.train, 4)[0], ONE)
    assert found.ema == found.trainable and found.frozen
    without = tiny(model__pretrained="absent", model__adaptation="linear")
    assert state.abstract_state(record(without), optim.make_optimizer(without.train, 4)[0], ONE).ema is None


# The loop.


def test_both_are_evaluated_and_a_run_goes_on_to_the_last_bit(run, motion_data, weights, tmp_path):
    whole = [r for r in computed(run) if r["split"] == "val"]
    assert [(r["step"], r["weights"]) for r in whole] == [(2, "raw"), (2, "ema"), (4, "raw"), (4, "ema")]
    shutil.copytree(run, tmp_path / "killed")
    shutil.rmtree(layout.checkpoint_dir(tmp_path / "killed") / "4")
    # A kill between the two evaluations of step 2.
    lines = [line for line in (run / "metrics.jsonl").open() if json.loads(line)["step"] <= 2]
    lines = [line for line in lines if json.loads(line).get("weights") != "ema"]
    (tmp_path / "killed" / "metrics.jsonl").write_text("".join(lines))
    loop.train(lora(motion_data, weights, **ON), tmp_path / "killed")
    assert computed(tmp_path / "killed") == computed(run)
    for kind in ("raw", "ema"):
        ours, theirs = (
            trained.load(path, ONE, step=4, weights=kind).params for path in (run, tmp_path / "killed")
        )
        for path, leaf in ours.items():
            np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_a_run_goes_on_with_an_average_and_without(plain, motion_data, weights, tmp_path, caplog):
    """It starts from the weights of the checkpoint, and ends with none."""
    workdir = tmp_path / "run"
    shutil.copytree(plain, workdir)
    assert not any("weights" in r for r in read_metrics(workdir))
    settings = {"checkpoint__every_steps": 1, "checkpoint__keep": 4}
    with caplog.at_level("INFO"):
        loop.train(lora(motion_data, weights, **settings, train__ema=0.3, train__steps=6), workdir)
    assert "step 4 was saved without an average: `train.ema` starts from its weights" in caplog.text
    raw = {step: trained.load(workdir, ONE, step=step, weights="raw").params for step in (4, 5, 6)}
    expected = averaged(averaged(raw[4], raw[5], 0.3, 4), raw[6], 0.3, 5)
    found = trained.load(workdir, ONE, step=6)
    assert found.weights == "ema" and trained.load(workdir, ONE, step=4).weights == "raw"
    for path, leaf in found.params.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-7, err_msg=path)
    made = [(r["step"], r.get("weights")) for r in read_metrics(workdir) if r["split"] == "val"]
    assert made == [(4, None), (6, "raw"), (6, "ema")]

    caplog.clear()
    with caplog.at_level("INFO"):
        loop.train(lora(motion_data, weights, **settings, train__steps=7), workdir)
    assert "`train.ema` is 0 now: the average of the weights ends with step 6" in caplog.text
    assert not checkpoint.has_average(workdir, 7) and checkpoint.has_average(workdir, 6)
    made = [(r["step"], r.get("weights")) for r in read_metrics(workdir) if r["split"] == "val"]
    assert made[2:] == [(6, "ema"), (7, None)]


# What a run is judged by.


def test_the_average_alone_says_which_is_best_and_when_to_stop(tmp_path):
    settings = record(tiny(train__ema=0.9))
    settings.write(tmp_path)
    writer = MetricsWriter(tmp_path, settings.config)
    for step, raw, ema in ((1, 0.9, 0.2), (2, 0.1, 0.5), (3, 0.8, 0.4)):
        for kind, top1 in (("raw", raw), ("ema", ema)):
            figures = {"top1": top1, "views": 1, "clips": 1, "dataset": "0", "weights": kind}
            writer.write(step, "val", figures)
    leaf = jnp.ones(4)
    with CheckpointManager(tmp_path, config.Checkpoint(keep=1), start=None) as checkpoints:
        for step in (1, 2, 3, 4):
            params, average = {"head.bias": leaf}, {"head.bias": 2 * leaf}
            saved = state.TrainState(jnp.int32(step), params, {}, {"mu": leaf}, average)
            checkpoints.save(step, saved, {"next_step": step, "bad": 0})
    assert checkpoint.steps(tmp_path) == [2, 4] and checkpoint.find(tmp_path, "best") == 2

    own = Setting.of_run(settings)
    found = evaluations.by_step(evaluations.read(tmp_path), own)
    assert [each.top1 for each in found.values()] == [0.2, 0.5, 0.4]
    raw = Setting.of_run(record(tiny()))
    found = evaluations.by_step(evaluations.read(tmp_path), raw)
    assert [each.top1 for each in found.values()] == [0.9, 0.1, 0.8]
    assert raw.differences(own) == ["raw weights"] and own.differences(own) == []


def test_the_report_gives_the_raw_weights_a_row_of_their_own(run, plain, tmp_path):
    table = writing.write([run, plain], tmp_path, "both", timed=False)
    rows = [line.split("  ")[0] for line in table.text.splitlines()[2:]]
    assert rows == [run.name, f"{run.name}, raw weights", plain.name]
    page = (tmp_path / "report.html").read_text()
    assert f"{run.name} is evaluated with the moving average of its weights" in page
    assert "ema weights" not in page  # and compared with the others for all that


# What loads a run.


def test_a_run_is_its_average_unless_asked_otherwise(run, motion_data, tmp_path):
    raw, ema = (trained.load(run, ONE, weights=kind) for kind in ("raw", "ema"))
    for path, leaf in raw.params.items():
        same = np.array_equal(leaf, ema.params[path])
        assert same == path.startswith("tower.") or not leaf.any(), path
    found = inti_jax.load(run)(video())
    np.testing.assert_array_equal(found, inti_jax.load(run, weights="ema")(video()))
    other = inti_jax.load(run, weights="raw")(video())
    assert np.abs(found - other).max() > 1e-4

    path = tmp_path / "clip.mp4"
    path.write_bytes(open_dataset("motion_digits", motion_data, "val")[0].video)
    labelled = [list(predict.predict_files(run, [path], 3, weights=kind)) for kind in (None, "ema", "raw")]
    assert labelled[0] == labelled[1] != labelled[2]


@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_a_file_of_what_trained_holds_one_of_them(run, kind, tmp_path):
    out = tmp_path / "small.safetensors"
    chosen = () if kind == "ema" else ("--weights", "raw")
    with contextlib.redirect_stdout(io.StringIO()):
        assert convert(run, "--to", "trained", "--out", out, *chosen) == 0
    expected = inti_jax.load(run, weights=kind)(video())
    np.testing.assert_array_equal(inti_jax.load(out)(video()), expected)
    np.testing.assert_array_equal(inti_jax.load(out, weights=kind)(video()), expected)
    with safetensors.safe_open(out, "numpy") as file:
        assert file.metadata().get("weights", "raw") == kind
    other = "raw" if kind == "ema" else "ema"
    with pytest.raises(UserError, match=f"holds the {kind} weights of a run, not the {other} ones"):
        inti_jax.load(out, weights=other)


def test_either_is_evaluated(run, motion_data, weights, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    settings = lora(motion_data, weights, **ON)
    before = {r["weights"]: r["top1"] for r in read_metrics(run) if r["split"] == "val" and r["step"] == 4}
    for kind, expected in (("raw", "raw"), (None, "ema")):
        evaluate.evaluate_run(settings, tmp_path / "run", weights=kind)
        last = read_metrics(tmp_path / "run")[-1]
        assert (last["weights"], last["top1"]) == (expected, before[expected])


def test_an_average_that_is_not_there_is_an_error_of_one_line(plain, motion_data, tmp_path):
    message = r"step 4 in .* has no averaged weights: .*`train\.ema` = 0"
    with pytest.raises(UserError, match=message) as caught:
        inti_jax.load(plain, weights="ema")
    assert "\n" not in str(caught.value)
    settings = RunRecord.read(plain).config
    with pytest.raises(UserError, match="has no averaged weights"):
        evaluate.evaluate_run(settings, plain, weights="ema")
    with pytest.raises(UsageError, match="holds no finished checkpoint"):
        evaluate.evaluate_run(tiny(motion_data), tmp_path / "none", weights="ema")
    assert convert(tmp_path / "absent.pt", "--out", tmp_path / "o.safetensors", "--weights", "raw") == 2
