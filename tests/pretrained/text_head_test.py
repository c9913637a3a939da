"""A classifier from class names ranks as CLIP does, with no training; and what `load_clip` refuses."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from inti_jax.errors import UserError
from inti_jax.models.heads import TextHead
from inti_jax.models.rngs import make_rngs
from inti_jax.pretrained import text_head
from inti_jax.pretrained.api import load_clip
from tests.commands import convert
from tests.cost.compiled import call, initialize
from tests.pretrained import checkpoints

NAMES = ["the dog", "a photo", "12 dogs and the photo"]
TEMPLATES = ("a photo of {}.", "{}")


@pytest.fixture(scope="module")
def model():
    return checkpoints.huggingface_model(resolution=64)


@pytest.fixture(scope="module")
def clip(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    source = checkpoints.write_huggingface(directory / "hf", model)
    assert convert(source, "--out", directory / "f.safetensors") == 0
    return load_clip(directory / "f.safetensors")


def test_zero_shot_logits_are_transformers(model, clip):
    """With several templates a class's vector is the unit mean of unit features."""
    images, _ = checkpoints.inputs(model)
    vectors = []
    for name in NAMES:
        prompts = [template.replace("{}", name) for template in TEMPLATES]
        image, text, _ = checkpoints.features(model, images, prompts)
        text /= np.linalg.norm(text, axis=-1, keepdims=True)
        vectors.append(text.mean(axis=0) / np.linalg.norm(text.mean(axis=0)))
    image /= np.linalg.norm(image, axis=-1, keepdims=True)
    expected = np.exp(model.logit_scale.item()) * image @ np.stack(vectors).T

    classes = text_head.class_embeddings(clip.encode_text, NAMES, TEMPLATES)
    np.testing.assert_allclose(checkpoints.logits(clip, images, classes), expected, atol=1e-4)


def test_a_text_head_gives_the_same_logits_of_the_towers_feature(model, clip):
    images, _ = checkpoints.inputs(model)
    classes = text_head.class_embeddings(clip.encode_text, NAMES, TEMPLATES)
    head = initialize(lambda: TextHead(128, 32, len(NAMES), rngs=make_rngs(0)))
    head.projection.kernel[...] = clip.projection
    head.classes.kernel[...] = classes.T
    head.logit_scale[...] = np.log(clip.logit_scale)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        tower = model.vision_model(pixel_values=pixels).pooler_output.numpy()
    ours = call(head, jnp.asarray(tower))
    np.testing.assert_allclose(ours, checkpoints.logits(clip, images, classes), atol=1e-4)


def test_many_texts_are_the_same_as_few(clip):
    texts = [f"photo {i}" for i in range(300)]
    many = clip.encode_text(texts)
    assert many.shape == (300, 32) and many.dtype == np.float32
    np.testing.assert_allclose(many[255:258], clip.encode_text(texts[255:258]), rtol=1e-4, atol=1e-5)


def test_images_in_any_form(clip):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = clip.encode_image(images)
    pictures = [Image.fromarray(image) for image in images]
    rgba = np.concatenate([images, images[..., :1]], axis=-1)
    for form in (jnp.asarray(images), torch.from_numpy(images), list(images), pictures, rgba):
        np.testing.assert_array_equal(clip.encode_image(form), expected)
    normalised = torch.zeros(1, 64, 64, 3, requires_grad=True)
    np.testing.assert_array_equal(
        clip.encode_image(normalised), clip.encode_image(np.zeros((1, 64, 64, 3), np.float32))
    )
    assert clip.encode_image(images[:0]).shape == (0, 32)
    for wrong in (pictures[0], [pictures[0].resize((32, 32))], "image.png", []):
        with pytest.raises(UserError):
            clip.encode_image(wrong)


def test_no_texts_have_no_features(clip):
    features = clip.encode_text([])
    assert features.shape == (0, 32) and features.dtype == np.float32


@pytest.mark.parametrize("texts", [["a dog", 3], [None], [b"a dog"]])
def test_what_is_no_text_is_named(clip, texts):
    with pytest.raises(UserError, match=r"text [01] should be a string, not (int|NoneType|bytes)"):
        clip.encode_text(texts)


def test_texts_are_cleaned_as_the_weights_own_library_does(model, clip, tmp_path):
    """Curly quotes are OpenAI's straight ones, and transformers' own."""
    torch.save(checkpoints.openai_state_dict(model), tmp_path / "m.pt")
    vocabulary = checkpoints.write_huggingface(tmp_path / "hf", model)
    given = ("--activation", "quick_gelu", "--vocab", vocabulary)
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", *given) == 0
    openai = load_clip(tmp_path / "f.safetensors")
    curly, straight = ["the dog\u2019s photo"], ["the dog's photo"]
    np.testing.assert_array_equal(openai.encode_text(curly), openai.encode_text(straight))
    np.testing.assert_array_equal(openai.encode_text(straight), clip.encode_text(straight))
    _, theirs, _ = checkpoints.features(model, checkpoints.inputs(model, batch=1)[0], curly)
    np.testing.assert_allclose(clip.encode_text(curly), theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(clip.encode_text(curly) - clip.encode_text(straight)).max() > 0.01


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), r"takes images \[B, 64, 64, 3\], not \[1, 32, 32, 3\]"),
        (np.zeros((64, 64, 3), np.uint8), r"not \[64, 64, 3\]"),
        (np.zeros((1, 64, 64, 3), np.int32), "images are uint8, or floats"),
        ("a.jpg", "not the path a.jpg: open it with Pillow"),
        ([Path("a.jpg")], "not the path a.jpg"),
    ],
)
def test_images_of_another_shape_or_type(clip, images, message):
    with pytest.raises(UserError, match=message):
        clip.encode_image(images)


def test_texts_need_a_vocabulary_and_a_text_tower(model, clip, tmp_path):
    for wrong in ("one text", b"one text"):
        with pytest.raises(UserError, match="a list"):
            clip.encode_text(wrong)
    weights = checkpoints.openai_state_dict(model)
    torch.save(weights, tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", "--activation", "quick_gelu") == 0
    with pytest.raises(UserError, match="--vocab"):
        load_clip(tmp_path / "f.safetensors").encode_text(["a dog"])

    tower = {name: value for name, value in weights.items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", "--activation", "quick_gelu") == 0
    with pytest.raises(UserError, match="no text tower"):
        load_clip(tmp_path / "f.safetensors").encode_text(["a dog"])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("applyLipstick", "apply lipstick"),
        ("HTMLPage", "html page"),
        ("Salad50Mix", "salad50 mix"),
        ("CleanUpÄpfel", "clean up äpfel"),
        ("brush_hair", "brush hair"),
        ("Brush_Hair", "Brush Hair"),
        ("turn  left", "turn left"),
        ("typing on an iPhone", "typing on an iPhone"),
        ("iPhone", "iPhone"),
        ("Archery", "Archery"),
        ("DVD", "DVD"),
        ("15som", "15som"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_a_label_reads_in_a_prompt(label, name):
    assert text_head.class_name(label) == name
