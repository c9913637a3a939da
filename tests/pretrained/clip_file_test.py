"""The file itself: its hash, its parts, and that nothing half-written is ever seen."""

import dataclasses

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from inti_jax.config.backbones import BackboneSize, Numerics
from inti_jax.errors import UserError
from inti_jax.models import parameters
from inti_jax.models.clip import CLIP, Architecture
from inti_jax.models.rngs import make_rngs
from inti_jax.models.text import TextSize
from inti_jax.models.tokenizer import Vocabulary
from inti_jax.pretrained import sources
from inti_jax.pretrained.clip_file import ClipFile, Description, build, content_hash, write
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.lazy_array import LazyArray, held
from tests.cost.compiled import call, initialize

DESCRIPTION = Description(
    Architecture(
        BackboneSize(width=32, layers=1, heads=2, patch=4, resolution=8),
        16,
        TextSize(width=24, layers=2, heads=3, vocabulary=9, context=5, end_token=7),
        Numerics("gelu", 1e-6),
    ),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    vocabulary=Vocabulary(("a", "ü</w>"), ("a b", "ü </w>")),
)


@pytest.fixture(scope="module")
def arrays():
    model = initialize(lambda: CLIP(DESCRIPTION.architecture, rngs=make_rngs(0)))
    params = parameters.flatten(nnx.state(model, nnx.Param))
    return {name: held(np.asarray(value)) for name, value in params.items()}


def test_what_is_written_is_read(arrays, tmp_path):
    digest = write(tmp_path / "f.safetensors", arrays, DESCRIPTION)
    file = ClipFile(tmp_path / "f.safetensors")
    assert file.description == DESCRIPTION
    assert file.hash == digest == content_hash(file)
    assert file.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(file[name].read(), array.read())
    # Anyone's safetensors reads it too.
    loaded = safetensors.numpy.load_file(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(loaded["logit_scale"], arrays["logit_scale"].read())


def test_a_part_of_an_array(arrays, tmp_path):
    write(tmp_path / "f.safetensors", arrays, DESCRIPTION)
    name = "tower.blocks.0.attn.qkv.kernel"
    index = (slice(8, 16), slice(None), slice(1, 2))
    part = ClipFile(tmp_path / "f.safetensors").read(name, index)
    np.testing.assert_array_equal(part, arrays[name].read()[index])


def test_hash_is_of_names_shapes_and_bytes(arrays):
    digest = content_hash(arrays)
    assert content_hash(dict(reversed(arrays.items()))) == digest
    name = "tower.ln_post.bias"
    values = arrays[name].read()
    changed = values.copy()
    changed[3] = np.nextafter(changed[3], 1)
    assert content_hash({**arrays, name: held(changed)}) != digest
    assert content_hash({**arrays, name: held(values.reshape(2, -1))}) != digest
    assert (
        content_hash({(f"{key}x" if key == name else key): array for key, array in arrays.items()}) != digest
    )


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(arrays, tmp_path, failure):
    def fail():
        raise failure

    path = tmp_path / "f.safetensors"
    name = sorted(arrays)[-1]
    broken = {**arrays, name: LazyArray(arrays[name].shape, arrays[name].dtype, fail)}
    with pytest.raises(failure):
        write(path, broken, DESCRIPTION)
    assert list(tmp_path.iterdir()) == []
    write(path, arrays, DESCRIPTION)
    before = path.read_bytes()
    with pytest.raises(failure):
        write(path, broken, DESCRIPTION)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_arrays_of_another_architecture_are_not_written(arrays, tmp_path):
    with pytest.raises(UserError, match="architecture"):
        write(tmp_path / "f.safetensors", {"logit_scale": arrays["logit_scale"]}, DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", "other"), ("format_version", "99"), ("image", "{}"), ("mean", "x"), ("cleaning", "none")],
)
def test_metadata_that_does_not_fit(arrays, tmp_path, key, value):
    write(tmp_path / "f.safetensors", arrays, DESCRIPTION)
    metadata = safetensors.safe_open(tmp_path / "f.safetensors", "numpy").metadata()
    loaded = {name: array.read() for name, array in arrays.items()}
    safetensors.numpy.save_file(loaded, tmp_path / "g.safetensors", {**metadata, key: value})
    with pytest.raises(UserError, match=r"g\.safetensors"):
        ClipFile(tmp_path / "g.safetensors")


@pytest.mark.parametrize("cleaning", ["openai", "huggingface"])
def test_cleaning_is_noted_and_older_files_are_read_as_they_were(arrays, tmp_path, cleaning):
    write(tmp_path / "f.safetensors", arrays, dataclasses.replace(DESCRIPTION, cleaning=cleaning))
    assert ClipFile(tmp_path / "f.safetensors").description.cleaning == cleaning
    metadata = safetensors.safe_open(tmp_path / "f.safetensors", "numpy").metadata()
    del metadata["cleaning"]
    loaded = {name: array.read() for name, array in arrays.items()}
    safetensors.numpy.save_file(loaded, tmp_path / "g.safetensors", metadata)
    assert ClipFile(tmp_path / "g.safetensors").description.cleaning == "huggingface"


def test_arrays_that_the_metadata_does_not_state(arrays, tmp_path):
    write(tmp_path / "f.safetensors", arrays, DESCRIPTION)
    metadata = safetensors.safe_open(tmp_path / "f.safetensors", "numpy").metadata()
    loaded = {name: array.read() for name, array in arrays.items() if name != "logit_scale"}
    safetensors.numpy.save_file(loaded, tmp_path / "g.safetensors", metadata)
    with pytest.raises(UserError, match="logit_scale"):
        ClipFile(tmp_path / "g.safetensors")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        ClipFile(tmp_path)


def test_one_tower_without_the_other(arrays):
    """A model of the text tower's parameters alone encodes texts as the whole does."""
    params = {name: array.read() for name, array in arrays.items()}
    text = {name: values for name, values in params.items() if name.startswith("text.")}
    tokens = np.array([[1, 2, 7, 0, 0]], np.int32)
    whole, part = (
        call(build(DESCRIPTION.architecture, p), tokens, method="encode_text") for p in (params, text)
    )
    np.testing.assert_array_equal(whole, part)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x04", b" {", b"\x80\x05"])
def test_a_header_whose_length_looks_like_another_file(arrays, tmp_path, start):
    """The length comes first, in bytes that may be those of a zip, a pickle or JSON."""
    write(tmp_path / "f.safetensors", arrays, DESCRIPTION)
    contents = (tmp_path / "f.safetensors").read_bytes()
    length = int.from_bytes(contents[:8], "little")
    padded = int.from_bytes(start, "little")
    while padded < length:
        padded += 1 << 16
    header = contents[8 : 8 + length] + b" " * (padded - length)
    path = tmp_path / "g.safetensors"
    path.write_bytes(padded.to_bytes(8, "little") + header + contents[8 + length :])
    assert path.read_bytes().startswith(start)
    assert ClipFile(path).hash == ClipFile(tmp_path / "f.safetensors").hash
    assert open_converted(path).path == path
    assert sources.read(path).arrays.keys() == arrays.keys()
