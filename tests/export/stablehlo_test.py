"""A model written as StableHLO gives the model's own outputs, in a process without this package."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import inti_jax
from inti_jax.config.backbones import BACKBONES
from inti_jax.errors import UserError
from inti_jax.export import portable, stablehlo_file
from tests.commands import call, convert
from tests.configs import FAMILIES, SHALLOW
from tests.export import examples, models
from tests.export.clips import clip_of_a_video
from tests.pretrained.weights import write_tiny
from tests.processes import QUICK_TO_COMPILE

pytestmark = pytest.mark.usefixtures("shallow")

load = examples.module("run_stablehlo.py").load


@pytest.mark.parametrize(("method", "compression"), models.pairs(1))
def test_logits_are_the_models_for_any_batch_and_number_of_frames(method, compression, tmp_path):
    found = models.trained(method, compression)
    assert stablehlo_file.write(tmp_path / "m.zip", portable.of_trained(found)).difference <= 1e-5
    run, metadata = load(tmp_path / "m.zip")
    model = models.classifier(found)
    for video in (models.videos(4), models.videos(8, batch=1)):
        assert models.relative(run(video), model(video)) <= 1e-4
    assert metadata["output"]["labels"] == list(model.labels)


@pytest.mark.parametrize(
    ("family", "method", "compression"), [("dinov2", "aim", "inti"), ("siglip", "lora", "tome")]
)
def test_features_of_other_backbones_and_shapes(family, method, compression, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(SHALLOW, **FAMILIES[family]))
    found = models.trained(method, compression, data__resolution=(24, 40), train__dtype="bfloat16")
    stablehlo_file.write(tmp_path / "m.zip", portable.of_trained(found, features=True))
    run, metadata = load(tmp_path / "m.zip")
    video = models.videos(size=(24, 40))
    assert models.relative(run(video), models.classifier(found).features(video)) <= 1e-4
    assert metadata["output"]["name"] == "features" and "labels" not in metadata["output"]
    assert metadata["input"]["shape"] == ["batch", "frames", 24, 40, 3]


@pytest.mark.parametrize("features", [False, True])
def test_the_image_tower_of_a_clip(features, tmp_path):
    clip = write_tiny(tmp_path / "clip.safetensors", embed=24)
    options = ("--features",) if features else ()
    assert convert(clip, "--to", "stablehlo", "--out", tmp_path / "tower.zip", *options) == 0
    run, metadata = load(tmp_path / "tower.zip")
    images = models.videos()[0]
    model = inti_jax.load_tower(clip).features if features else inti_jax.load_clip(clip).encode_image
    expected = model(images)
    assert models.relative(run(images), expected) <= 1e-4
    assert metadata["input"]["name"] == "images"


@pytest.fixture(scope="module")
def written(trained_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "mine.zip"
    assert convert(trained_run, "--to", "stablehlo", "--out", path) == 0
    return path


def test_the_example_runs_where_this_package_is_not(written, trained_run, tmp_path):
    model = inti_jax.load(trained_run)
    _, metadata = load(written)
    clip = clip_of_a_video(metadata)
    np.save(tmp_path / "clip.npy", clip)
    script = tmp_path / "run_stablehlo.py"
    script.write_text(examples.CODE["run_stablehlo.py"])
    isolated = [sys.executable, "-I"]
    absent = subprocess.run(
        [*isolated, "-c", "import inti_jax"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "ModuleNotFoundError" in absent.stderr
    done = subprocess.run(
        [*isolated, script, written, tmp_path / "clip.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE},
    )
    assert done.returncode == 0, done.stderr
    models.check_printed(done.stdout, model(clip), model.labels)


def test_clips_are_cut_as_the_evaluation_cuts_them(written, trained_run):
    _, metadata = load(written)
    frames = list(np.random.default_rng(0).integers(0, 256, (40, 45, 70, 3), np.uint8))
    model = inti_jax.load(trained_run)
    data = model.config.data
    start = (40 - (data.num_frames - 1) * data.stride - 1) // 2
    chosen = frames[start :: data.stride][: data.num_frames]
    expected, _ = model.crop(chosen)
    np.testing.assert_array_equal(examples.module("clip_of.py").clip_of(frames, metadata), expected[0])


def test_nothing_in_the_file_is_a_pickle(written):
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        for name in names[2:]:
            with archive.open(name) as member:
                assert np.lib.format.read_array(member, allow_pickle=False).dtype == np.float32
        assert names[:2] == ["metadata.json", "program.bin"]
        facts = json.loads(archive.read("metadata.json"))
        weights = sum(info.file_size for info in archive.infolist()[2:])
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["format_version"] == 1
    assert written.stat().st_size - weights < 400_000  # the program, whatever the weights


def test_a_shared_model_gives_the_same_file(written, trained_run, tmp_path):
    assert convert(trained_run, "--to", "hub", "--all", "--out", tmp_path / "mine") == 0
    assert convert(tmp_path / "mine", "--to", "stablehlo", "--out", tmp_path / "again.zip") == 0
    first, again = (zipfile.ZipFile(path) for path in (written, tmp_path / "again.zip"))
    with first, again:
        assert first.namelist() == again.namelist()
        for name in first.namelist()[2:]:
            assert first.read(name) == again.read(name)


def test_a_program_that_differs_is_not_written(tmp_path):
    model = portable.of_trained(models.trained("full", "none"))
    noise = np.random.default_rng(0)

    def random(params, video):  # which no two traces compute alike
        return model.function(params, video) + noise.standard_normal(model.width, np.float32)[None]

    with pytest.raises(
        UserError, match=r"m\.zip: the program differs from the model by .* nothing was written"
    ):
        stablehlo_file.write(tmp_path / "m.zip", dataclasses.replace(model, function=random))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "stablehlo", "--out", "m.hlo"), "should end in .zip"),
        (("--to", "savedmodel", "--out", "m"), "use --to onnx or stablehlo"),
        (("--to", "trained", "--out", "m.safetensors", "--features"), "--features goes with"),
        (("--to", "stablehlo", "--out", "m.zip", "--labels", "l.txt"), "the file states the rest"),
    ],
)
def test_what_is_refused(trained_run, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("convert", trained_run, *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "pickle.zip").write_bytes(b"\x80\x04no weights")
    shutil.copy(__file__, tmp_path / "text.safetensors")
    for name in ("pickle.zip", "text.safetensors", "absent"):
        done = call("convert", tmp_path / name, "--to", "stablehlo", "--out", tmp_path / "m.zip")
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "m.zip").exists()
