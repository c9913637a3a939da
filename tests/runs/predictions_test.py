"""The files of an evaluation's predictions: what they hold, how long they are kept, and damage."""

import dataclasses
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from inti_jax import config
from inti_jax.data import pipeline
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate, metrics
from inti_jax.runs import evaluations, layout, predictions
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.evaluations import Setting
from inti_jax.runs.predictions import Place, SavedPredictions
from inti_jax.runs.record import RunRecord
from inti_jax.runs.state import TrainState
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.training import loop
from tests.configs import record, tiny
from tests.processes import environment

pytestmark = pytest.mark.usefixtures("shallow", "unreported")


def made_up(videos=6, clips=2, crops=3, classes=4, missing=1, several=False, **changes):
    """Predictions of an evaluation, and those of its views."""
    rng = np.random.default_rng(videos)
    views = rng.dirichlet(np.ones(classes), (videos, clips * crops)).astype(np.float32)
    labels = rng.integers(0, classes, videos).astype(np.int32)
    values = {
        "dataset": "made_up",
        "sha256": "0123456789abcdef",
        "split": "val",
        "step": 4,
        "weights": "raw",
        "clips": clips,
        "crops": crops,
        "classes": tuple(f"class {k}" for k in range(classes)),
        "ids": tuple(f"vidéo {index}" for index in range(videos)),
        "index": np.arange(videos, dtype=np.int32),
        "labels": rng.random((videos, classes)) < 0.5 if several else labels,
        "probabilities": views.mean(axis=1),
        "frames": rng.integers(0, 90, (videos, clips * crops, 2)).astype(np.int32),
        "missing": tuple(f"lost {index}" for index in range(missing)),
    }
    return SavedPredictions(**(values | changes)), views


def assert_same(found, expected):
    for field in dataclasses.fields(SavedPredictions):
        values = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(*values, err_msg=field.name)


# What a run's evaluation keeps.


def own_file(workdir, step=4):
    return Place.of(step, Setting.of_run(RunRecord.read(workdir))).path(workdir)


def test_the_figures_of_an_evaluation_follow_from_its_file_to_the_last_bit(trained_run, motion_data):
    found = predictions.read(own_file(trained_run))
    (logged,) = (r for r in read_metrics(trained_run) if r["split"] == "val")
    rank = metrics.ranks(found.probabilities, found.labels)
    assert metrics.topk_accuracy(rank, 1) == logged["top1"] and 0 < logged["top1"] < 1
    assert metrics.topk_accuracy(rank, 5) == logged["top5"]
    assert metrics.mean_class_accuracy(rank, found.labels) == logged["mean_class"]
    assert found.setting == Setting.of_run(RunRecord.read(trained_run))
    assert (found.step, found.missing) == (logged["step"], ())

    settings, dataset = RunRecord.read(trained_run).config, open_dataset("motion_digits", motion_data, "val")
    assert found.ids == dataset.ids and found.classes == dataset.labels
    np.testing.assert_array_equal(found.labels, dataset.classes)
    for frames, index in zip(found.frames, found.index.tolist(), strict=True):
        taken = pipeline.view_indices(dataset[index].frames, settings.data, settings.eval).reshape(2, -1)
        np.testing.assert_array_equal(frames, taken[:, [0, -1]])
    views = predictions.read_views(own_file(trained_run))
    np.testing.assert_allclose(views.astype(np.float32).mean(axis=1), found.probabilities, rtol=2**-9)


def test_a_video_that_did_not_decode_is_listed_without_probabilities(motion_data, tmp_path):
    settings, dataset = tiny(motion_data), open_dataset("motion_digits", motion_data, "val")
    index = np.delete(np.arange(20, dtype=np.int32), [3, 8])
    views = np.full((18, 1, 10), 0.1, np.float32)
    found = evaluate.Predictions(index, dataset.classes[index], views, np.array([3, 8], np.int32))
    setting = Setting.of(settings, dataset.manifest["sha256"])
    evaluate.keep(tmp_path, 4, found, dataset, settings, setting)
    saved = predictions.read(Place.of(4, setting).path(tmp_path))
    assert saved.missing == (dataset.ids[3], dataset.ids[8]) and saved.index.tolist() == index.tolist()
    assert sorted([*saved.ids, *saved.missing]) == sorted(dataset.ids)


def test_numpy_alone_reads_what_the_docs_say(tmp_path):
    saved, views = made_up(several=True)
    with np.load(predictions.write(tmp_path, saved, views)) as archive:  # without pickles
        arrays = dict(archive)
    assert arrays["ids"].tolist() == list(saved.ids) and arrays["missing"].tolist() == ["lost 0"]
    assert arrays["position"].tolist() == [0, 0.5, 1] * 2 and arrays["labels"].dtype == bool
    assert arrays["views"].shape == (6, 6, 4) and arrays["probabilities"].dtype == np.float32
    assert int(arrays["step"]) == 4 and str(arrays["weights"]) == "raw"


def test_views_are_rounded_to_nine_bits():
    numbers = np.concatenate([np.linspace(0, 1, 10_000), np.geomspace(1e-9, 1, 10_000)]).astype(np.float32)
    found = predictions.rounded(numbers[None, None])[0, 0].astype(np.float32)
    assert (np.abs(found - numbers) <= np.maximum(numbers * 2**-9, 2**-23)).all()
    assert found.max() == 1 and len(np.unique(found[numbers > 0.5])) == 2**8 + 1


@pytest.mark.parametrize("several", [False, True])
def test_what_is_written_is_read(several, tmp_path):
    saved, views = made_up(several=several)
    path = predictions.write(tmp_path, saved, views)
    assert path.name == "4-2x3-raw-01234567.npz"
    assert_same(predictions.read(path), saved)
    assert predictions.find(tmp_path) == {saved.place: path}
    content = path.read_bytes()
    predictions.write(tmp_path, saved, views)
    assert path.read_bytes() == content


def test_a_runs_own_predictions_are_selected(tmp_path):
    settings = record(tiny())
    settings.write(tmp_path)
    own = {"sha256": settings.dataset.sha256, "clips": 1, "crops": 1}
    writer = MetricsWriter(tmp_path, tiny())
    for step, top1 in ((2, 0.5), (4, 0.7), (6, 0.1)):
        predictions.write(tmp_path, *made_up(step=step, **own))
        writer.write(step, "val", {"top1": top1, "views": 1, "clips": 1, "dataset": own["sha256"]})
    predictions.write(tmp_path, *made_up(step=8))  # of another dataset
    chosen = [predictions.select(tmp_path, step).name for step in (None, 2, "best")]
    assert chosen == ["6-1x1-raw-0.npz", "2-1x1-raw-0.npz", "4-1x1-raw-0.npz"]
    for step, weights, said in (
        (8, None, "of step 8 with its own"),
        (None, "ema", r"ema weights \(it has: 2-1x1"),
    ):
        with pytest.raises(UserError, match=said):
            predictions.select(tmp_path, step, weights)


# Which are kept.


def test_predictions_are_kept_as_checkpoints_are(tmp_path):
    def evaluate_step(step):
        for weights in ("raw", "ema"):
            predictions.write(tmp_path, *made_up(step=step, weights=weights))

    record(tiny()).write(tmp_path)
    evaluate_step(0)
    evaluate_step(9)  # of a later checkpoint that is damaged: the run goes on from an earlier one
    leaf = jax.numpy.zeros(2)
    with CheckpointManager(tmp_path, config.Checkpoint(keep=2, keep_best=0), start=None) as checkpoints:
        for step in (1, 2, 3):
            state = TrainState(jax.numpy.int32(step), {"head.bias": leaf}, {}, {"mu": leaf})
            checkpoints.save(step, state, {"next_step": step, "bad": 0})
            evaluate_step(step)
    kept = [(place.step, place.weights) for place in predictions.find(tmp_path)]
    assert kept == [(step, weights) for step in (0, 2, 3) for weights in ("ema", "raw")]


def test_a_run_that_was_killed_while_it_wrote_them_has_the_same_in_the_end(trained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    expected = own_file(workdir).read_bytes()
    own_file(workdir).rename(own_file(workdir).with_suffix(".npz.partial"))
    lines = layout.metrics_path(workdir).read_text().splitlines(keepends=True)
    layout.metrics_path(workdir).write_text("".join(x for x in lines if json.loads(x)["split"] != "val"))
    loop.train(RunRecord.read(workdir).config, workdir)
    assert own_file(workdir).read_bytes() == expected
    assert [path.name for path in layout.predictions_dir(workdir).iterdir()] == [own_file(workdir).name]


def test_another_evaluation_has_a_file_of_its_own(trained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    settings = RunRecord.read(workdir).config
    evaluate.evaluate_run(dataclasses.replace(settings, eval=config.Eval(batch=16, clips=3)), workdir)
    places = [(place.step, place.clips, place.crops) for place in predictions.find(workdir)]
    assert places == [(4, 2, 1), (4, 3, 1)]
    for place, path in predictions.find(workdir).items():
        found = predictions.read(path)
        rank = metrics.ranks(found.probabilities, found.labels)
        logged = evaluations.by_step(evaluations.read(workdir), found.setting)[4]
        assert found.place == place and metrics.topk_accuracy(rank, 1) == logged.top1


# Damage.


def test_what_does_not_fit_on_the_disk_leaves_the_earlier_file(tmp_path):
    path = predictions.write(tmp_path, *made_up())
    content = path.read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            predictions.write(tmp_path, *made_up())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == f"{path}.partial"
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_kill_leaves_a_whole_file_or_none(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom inti_jax.runs import predictions\n"
        "from tests.runs.predictions_test import made_up\n"
        "saved, views = made_up(videos=3000)\nprint('here', flush=True)\n"
        "while True:\n    predictions.write(Path(sys.argv[1]), saved, views)\n"
    )
    command = [sys.executable, "-c", script, tmp_path]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.4)
    finally:
        process.kill()
        process.communicate()
    expected, views = made_up(videos=3000)
    for path in predictions.find(tmp_path).values():
        assert_same(predictions.read(path), expected)
    path = predictions.write(tmp_path, expected, views)
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_is_one_clear_error_or_read_as_it_was(tmp_path):
    saved, views = made_up()
    path = predictions.write(tmp_path, saved, views)
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(200):
        damaged = bytearray(content)
        if trial % 4 == 0:
            del damaged[rng.integers(len(content)) :]
        else:
            for at in rng.integers(len(content), size=trial % 3 + 1):
                damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found, of_views = predictions.read(path), predictions.read_views(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert_same(found, saved)
            np.testing.assert_array_equal(of_views, predictions.rounded(views))
    assert refused > 150


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def huge(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ids", npy(np.array([{}] * 6, dtype=object)), "an array of object"),
        ("probabilities", huge((2**40, 2**20)), "another size than its header says"),
        ("probabilities", npy(np.full((6, 4), np.nan, np.float32)), "no probabilities"),
        ("probabilities", npy(np.full((6, 4), 0.25)), "probabilities float64"),
        ("probabilities", npy(np.full((6, 5), 0.2, np.float32)), r"shape \(6, 5\) instead of \(6, 4\)"),
        ("labels", npy(np.full(6, 4, np.int32)), "none of the 4 classes"),
        ("labels", npy(np.full((6, 4), 1, np.int32)), "labels are int32"),
        ("index", npy(np.array([0, 1, 2, 2, 3, 4])), "out of order"),
        ("index", npy(np.array([0, 1, 2, 3, 4, 9])), "out of range"),
        ("clips", npy(2**62), "instead of"),
        ("step", npy(np.arange(3)), "`step` is int64 of 1 dimensions"),
        ("format_version", npy(2), "has version 2, and this is version 1"),
        ("weights", npy("both"), "impossible"),
        ("classes", npy(["a", "b", "c", "a"]), "a class occurs twice"),
        ("missing", npy(np.array([0x7FFFFFFF], np.uint32).view("U1")), "characters that there are not"),
        ("views", npy(np.full((6, 6, 4), 2, np.float16)), "no probabilities"),
        ("views", npy(np.full((6, 4), 1, np.float16)), r"not float16 \(6, 6, 4\)"),
        ("dataset", None, "lacks the array 'dataset'"),
    ],
)
def test_a_hostile_file_is_one_clear_error(name, content, said, tmp_path):
    path = predictions.write(tmp_path, *made_up())
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, own in members.items():
            new = content if member == f"{name}.npy" else own
            if new is not None:
                archive.writestr(member, new)
    with pytest.raises(UserError, match=said) as caught:
        predictions.read_views(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_such_file_is_one_clear_error(tmp_path):
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", videos=np.zeros(3))
    for name, said in (("absent", "No such file"), ("text", "not a zip file"), ("other", "lacks the array")):
        with pytest.raises(UserError, match=said):
            predictions.read(tmp_path / f"{name}.npz")
