"""The reader of torch's files: the same tensors as torch's own, and damage of any kind is a UserError."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.errors import UserError
from inti_jax.pretrained.pickled import read_archive, read_legacy


@pytest.fixture(scope="module")
def weights():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": base,
        "transposed": base.t(),
        "view": base[1:3, 2:5],  # shares its storage
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(7.5),
        "integers": torch.arange(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_the_same_tensors_as_torch(weights, tmp_path, legacy):
    path = tmp_path / "m.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    arrays = (read_legacy if legacy else read_archive)(path).arrays
    assert arrays.keys() == weights.keys()
    for name, value in weights.items():
        array = arrays[name]
        assert array.read().dtype == array.dtype and array.read().shape == array.shape == tuple(value.shape)
        np.testing.assert_array_equal(array.read().astype(np.float32), value.detach().float().numpy())


@settings(max_examples=300, deadline=None)
@given(data=st.data(), legacy=st.booleans())
def test_damage_is_a_user_error(weights, tmp_path_factory, data, legacy):
    buffer = io.BytesIO()
    torch.save(
        {"a": weights["plain"], "b": weights["view"]}, buffer, _use_new_zipfile_serialization=not legacy
    )
    contents = {"": buffer.getvalue()}
    if not legacy:  # inside the zip, whose own checksum would find it
        with zipfile.ZipFile(buffer) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
    damaged = next(name for name in contents if name.endswith("data.pkl") or legacy)
    changed = bytearray(contents[damaged])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.pt"
    if legacy:
        path.write_bytes(changed)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in {**contents, damaged: bytes(changed)}.items():
                archive.writestr(name, value)
    try:
        for array in (read_legacy if legacy else read_archive)(path).arrays.values():
            assert array.read().shape == array.shape  # refuses what is no tensor
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_without_names_is_refused(tmp_path, legacy):
    torch.save(torch.zeros(3), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"m\.pt .*: it holds no names"):
        (read_legacy if legacy else read_archive)(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.load", "builtins.getattr", "functools.partial"]
)
def test_nothing_but_tensors_can_be_named(tmp_path, name):
    module, _, function = name.rpartition(".")
    stream = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", stream)
    with pytest.raises(UserError, match=f"asks for {name}"):
        read_archive(tmp_path / "m.pt")


def test_an_object_that_holds_itself(tmp_path):
    looped: dict = {}
    looped["again"] = looped
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(looped))
    with pytest.raises(UserError, match="holds itself"):
        read_archive(tmp_path / "m.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_tensor_is_an_entry_too(weights, tmp_path, legacy):
    state = {"a": weights["plain"], "b": 3.0, "c": [weights["plain"]], "d": {}, "e": None}
    path = tmp_path / "m.pt"
    torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
    contents = (read_legacy if legacy else read_archive)(path)
    assert contents.beside == ("epoch",)
    assert [name for name, array in contents.arrays.items() if array.dtype == object] == ["b", "c", "d", "e"]
    with pytest.raises(UserError, match="b is no tensor"):
        contents.arrays["b"].read()


def test_two_entries_of_one_name(weights, tmp_path):
    torch.save({"a.b": weights["plain"], "a": {"b": weights["half"]}}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"two entries named 'a\.b'"):
        read_archive(tmp_path / "m.pt")
