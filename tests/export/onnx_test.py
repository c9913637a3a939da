"""A model written as ONNX gives the model's own outputs in ONNX Runtime, without this package and JAX."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import inti_jax
from inti_jax.config.backbones import BACKBONES
from inti_jax.errors import UserError
from inti_jax.export import onnx_file, portable
from tests.commands import call, convert
from tests.configs import FAMILIES, SHALLOW
from tests.export import examples, models
from tests.export.clips import clip_of_a_video
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("shallow")

load = examples.module("run_onnx.py").load


@pytest.mark.parametrize(("method", "compression"), models.pairs(5))
def test_logits_are_the_models_for_any_batch(method, compression, tmp_path):
    found = models.trained(method, compression)
    onnx_file.write(tmp_path / "m.onnx", portable.of_trained(found))
    run, metadata = load(tmp_path / "m.onnx")
    model = models.classifier(found)
    video = models.videos(4, batch=3)
    expected = model(video)
    assert models.relative(run(video), expected) <= 1e-4
    assert models.relative(run(video[1:2]), expected[1:2]) <= 1e-4
    assert metadata["output"]["labels"] == list(model.labels)
    assert metadata["input"]["shape"] == ["batch", 4, 32, 32, 3]


@pytest.mark.parametrize(
    ("family", "method", "compression"), [("dinov2", "aim", "inti"), ("siglip", "lora", "tome")]
)
def test_features_of_other_backbones_and_shapes(family, method, compression, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(SHALLOW, **FAMILIES[family]))
    found = models.trained(method, compression, data__resolution=(24, 40))
    onnx_file.write(tmp_path / "m.onnx", portable.of_trained(found, features=True))
    run, metadata = load(tmp_path / "m.onnx")
    video = models.videos(size=(24, 40))
    assert models.relative(run(video), models.classifier(found).features(video)) <= 1e-4
    assert metadata["output"]["name"] == "features"


def test_the_image_tower_of_a_clip_in_float16(tmp_path):
    clip = write_tiny(tmp_path / "clip.safetensors", embed=24)
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.onnx"
        assert convert(clip, "--to", "onnx", "--out", out, "--dtype", dtype) == 0
    whole, half = ((tmp_path / f"{dtype}.onnx").stat().st_size for dtype in ("float32", "float16"))
    assert half < 0.6 * whole
    images = models.videos()[0]
    run, metadata = load(tmp_path / "float16.onnx")
    assert run(images).dtype == np.float32 and metadata["model"]["dtype"] == "float16"
    assert models.relative(run(images), inti_jax.load_clip(clip).encode_image(images)) <= 2e-2


def test_the_example_runs_where_this_package_is_not(trained_run, tmp_path):
    written = tmp_path / "mine.onnx"
    assert convert(trained_run, "--to", "onnx", "--out", written) == 0
    onnx.checker.check_model(written, full_check=True)
    _, metadata = load(written)
    clip = clip_of_a_video(metadata)
    np.save(tmp_path / "clip.npy", clip)
    script = tmp_path / "run_onnx.py"
    # Nor JAX: the example needs neither.
    script.write_text("import sys\nsys.modules['jax'] = None\n" + examples.CODE["run_onnx.py"])
    done = subprocess.run(
        [sys.executable, "-I", script, written, tmp_path / "clip.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    model = inti_jax.load(trained_run)
    models.check_printed(done.stdout, model(clip), model.labels)


def test_what_cannot_be_converted_is_refused_by_name(tmp_path):
    model = portable.of_trained(models.trained("full", "inti"))

    def odd(params, video):
        import jax

        return jax.random.normal(jax.random.key(0), (len(params), 5)) * jax.numpy.linalg.eigvals(video)

    with pytest.raises(UserError, match="jax2onnx cannot convert method full with compression inti: "):
        onnx_file.write(tmp_path / "m.onnx", dataclasses.replace(model, function=odd))
    assert list(tmp_path.iterdir()) == []


def test_models_that_no_file_holds_are_refused(tmp_path):
    model = portable.of_trained(models.trained("full", "inti"))
    large = {**model.params, "huge": np.broadcast_to(np.float32(0), (2**30,))}
    with pytest.raises(UserError, match=r"weights take 4\.3 GB in float32"):
        onnx_file.write(tmp_path / "m.onnx", dataclasses.replace(model, params=large))


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    model = portable.of_trained(models.trained("full", "inti"))
    with pytest.raises(UserError, match=r"--to onnx needs jax2onnx: pip install .* --no-deps jax2onnx=="):
        onnx_file.write(tmp_path / "m.onnx", model)


def test_dtypes_are_for_onnx_alone(trained_run, tmp_path):
    out = tmp_path / "m.zip"
    done = call("convert", trained_run, "--to", "stablehlo", "--dtype", "float16", "--out", out)
    assert done.returncode == 2 and "--dtype goes with --to onnx" in done.stderr
