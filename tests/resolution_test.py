"""A run on frames that are not square, from its weights to what others make of it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import inti_jax
from inti_jax.config import ConfigError, Mesh
from inti_jax.data.codec import decode
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.evaluation import inference
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.runs import layout, trained, trained_file
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop, train_step
from tests.commands import convert
from tests.configs import INTI, SHALLOW, record, tiny
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("shallow", "unreported")

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights for yet another shape, so that positions are resampled from 2 x 8 to 4 x 6."""
    image = dataclasses.replace(SHALLOW, resolution=(16, 64))
    return write_tiny(tmp_path_factory.mktemp("weights") / "clip.safetensors", image=image, embed=16)


def settings_for(motion_data, weights, **changes):
    values = {
        "model__pretrained": str(weights),
        "model__adaptation": "st_adapter",
        "model__st_adapter__width": 16,
        "data__resolution": (HEIGHT, WIDTH),
        "data__crop": "multi_scale",
        "eval__crops": 3,
    }
    return tiny(motion_data, **INTI, **values | changes)


@pytest.fixture(scope="module")
def workdir(motion_data, weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "wide"
    loop.train(settings_for(motion_data, weights), path)
    return path


def test_the_record_has_the_resolution_and_the_run_goes_on_to_the_last_bit(
    motion_data, weights, workdir, tmp_path
):
    kept = RunRecord.read(workdir)
    assert kept.config == settings_for(motion_data, weights) and kept.config.data.resolution == (32, 48)
    assert kept.backbone.size.resolution == (16, 64)
    assert read_metrics(workdir)[-1]["split"] == "val"
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(layout.checkpoint_dir(again) / "4")
    loop.train(settings_for(motion_data, weights), again)
    one = sharding.one_device_mesh()
    before, after = (trained.load(path, one).params for path in (workdir, again))
    assert before["tower.positional_embedding"].shape == (1 + 4 * 6, 96)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_files_are_seen_in_crops_of_that_shape(workdir, motion_data, tmp_path):
    video = open_dataset("motion_digits", motion_data, "val")[0].video
    (tmp_path / "a.mp4").write_bytes(video)
    model = inference.FileModel(workdir)
    (outcome,) = model([tmp_path / "a.mp4"])
    (indices,) = model.frames_of_views(outcome.info)
    frames = decode.decode_frames(video, indices, outcome.info.frames)
    assert frames.shape[1:] == (64, 64, 3)
    classify = inti_jax.load(workdir)
    for values, top in zip(outcome.values, (0, 10, 21), strict=True):  # 43 of 64 rows
        clip = [
            Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (0, top, 64, top + 43))
            for frame in frames
        ]
        logits = classify(np.stack(list(map(np.asarray, clip))))
        np.testing.assert_allclose(values, jax.nn.softmax(logits), atol=1e-6)
    # A function of frames takes the central crop.
    np.testing.assert_allclose(jax.nn.softmax(classify(frames)), outcome.values[1], atol=1e-6)


def test_its_tower_is_a_file_of_that_resolution(workdir, motion_data, tmp_path, capsys):
    out = tmp_path / "tower.safetensors"
    assert convert(workdir, "--out", out) == 0
    assert "resolution (32, 48)" in capsys.readouterr().out
    tower = inti_jax.load_tower(out)
    assert tower.features(np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)).shape == (2, 96)
    with pytest.raises(UserError, match=r"takes images \[B, 32, 48, 3\], not \[2, 48, 32, 3\]"):
        tower.features(np.zeros((2, WIDTH, HEIGHT, 3), np.uint8))

    # In OpenAI's naming, the config that open_clip reads tells the shape of the grid.
    directory = tmp_path / "open_clip"
    directory.mkdir()
    weights = directory / "open_clip_model.safetensors"
    assert convert(out, "--to", "openai", "--out", weights) == 0
    again = tmp_path / "again.safetensors"
    assert convert(weights, "--out", again) == 1
    assert "24 positions are not a square grid: open_clip_config.json beside" in capsys.readouterr().err
    sizes = {"image_size": [HEIGHT, WIDTH], "width": 96, "patch_size": 8, "head_width": 24}
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": sizes}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    assert convert(directory, "--out", again) == 0
    assert ClipFile(again).hash == ClipFile(out).hash
    assert ClipFile(again).description == ClipFile(out).description
    assert convert("--verify", again, "--against", directory) == 0
    sizes["image_size"] = [HEIGHT, HEIGHT]
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    assert convert(directory, "--out", again) == 1
    assert "image_size [32, 32] of open_clip_config.json and patches of 8 do not" in capsys.readouterr().err

    assert convert(out, "--to", "huggingface", "--out", tmp_path / "hf") == 1
    assert "positions for 32 x 48 pixels, and Hugging Face's" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_what_trained_starts_a_run_of_another_shape_unless_positions_train(
    workdir, motion_data, weights, tmp_path
):
    small = tmp_path / "small.safetensors"
    assert convert(workdir, "--to", "trained", "--out", small) == 0
    assert not any(name.startswith("tower.") for name in safetensors.numpy.load_file(small))
    video = np.random.default_rng(0).integers(0, 256, (8, 40, 90, 3), np.uint8)
    expected = inti_jax.load(workdir)(video)
    np.testing.assert_array_equal(inti_jax.load(small, pretrained=weights)(video), expected)

    run = RunRecord.read(workdir)
    square = settings_for(motion_data, weights, data__resolution=32)
    trained_file.check_fits(small, run, RunRecord(square, run.dataset, run.backbone))
    wide, square = (
        RunRecord(tiny(motion_data, data__resolution=resolution), run.dataset, run.backbone)
        for resolution in ((HEIGHT, WIDTH), 32)
    )
    trained_file.check_fits(small, wide, wide)
    with pytest.raises(ConfigError, match=r"`data.resolution` = \(32, 48\), here it is 32"):
        trained_file.check_fits(small, wide, square)


def test_the_step_is_lowered_for_such_frames():
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    _, lowered = train_step.lower_step(record(tiny(data__resolution=(24, 40))), mesh)
    (_, batch), _ = lowered.in_avals
    assert batch["video"].shape == (8, 8, 24, 40, 3)
