"""The reader of torch's files: the same tensors as torch's own, and damage of any kind is a UserError."""

import argparse
import collections
import datetime
import functools
import importlib
import inspect
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.errors import UserError
from inti_jax.pretrained import inert
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
    held = {"a": weights["plain"], "b": weights["view"], "args": argparse.Namespace(x=np.float64(1))}
    torch.save(held, buffer, _use_new_zipfile_serialization=not legacy)
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
            assert array.dtype == object or array.read().shape == array.shape
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
def test_a_name_that_is_all_there_is_is_named(tmp_path, name):
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
    entries = read_archive(tmp_path / "m.pt").arrays
    assert [(name, array.dtype) for name, array in entries.items()] == [("again", np.dtype(object))]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_tensor_is_an_entry_too(weights, tmp_path, legacy):
    state = {"a": weights["plain"], "b": 3.0, "c": [weights["plain"]], "d": {}, "e": None}
    path = tmp_path / "m.pt"
    torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
    arrays = (read_legacy if legacy else read_archive)(path).arrays
    others = ["state_dict.b", "state_dict.c", "state_dict.d", "state_dict.e", "epoch"]
    assert [name for name, array in arrays.items() if array.dtype == object] == others
    with pytest.raises(UserError, match="b is not a tensor"):
        arrays["state_dict.b"].read()


def test_two_entries_of_one_name(weights, tmp_path):
    torch.save({"a.b": weights["plain"], "a": {"b": weights["half"]}}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"two entries named 'a\.b'"):
        read_archive(tmp_path / "m.pt")


class Settings(dict):
    """A dict of another class, as OmegaConf's or mmengine's are."""


def beside(path):
    """Give the objects that training code keeps beside weights; none is a tensor."""
    return {
        "best": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(rate=1e-3, out=path, names={"a", "b"}),
        "config": Settings(depth=12, inner=Settings(width=4)),
        "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, a=[1]),
        "when": datetime.datetime(2026, 1, 1),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2]),
        "norm": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "enum": inspect.Parameter.POSITIONAL_ONLY,
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_beside_weights_is_read_past(weights, tmp_path, legacy, protocol):
    others = beside(tmp_path)
    path = tmp_path / "m.pt"
    torch.save(
        {"model": {"a": weights["plain"]}, **others, "again": others},
        path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    arrays = (read_legacy if legacy else read_archive)(path).arrays
    assert [name for name, array in arrays.items() if array.dtype != object] == ["model.a"]
    np.testing.assert_array_equal(arrays["model.a"].read(), weights["plain"])


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_in_a_dict_of_another_class_and_in_a_whole_module(weights, tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.GELU(), torch.nn.BatchNorm1d(3))
    held = {"state": Settings(a=weights["plain"]), "model": module}
    torch.save(held, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    arrays = (read_legacy if legacy else read_archive)(tmp_path / "m.pt").arrays
    expected = {"state.a": weights["plain"]} | {f"model.{k}": v for k, v in module.state_dict().items()}
    assert {name for name, array in arrays.items() if array.dtype != object} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name].read(), value.detach())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz"])
def test_floats_of_8_bits(tmp_path, legacy, kind):
    value = torch.tensor([[0.5, -1.75], [2.0, 448.0]])
    path = tmp_path / "m.pt"
    torch.save({"a": value.to(getattr(torch, kind))}, path, _use_new_zipfile_serialization=not legacy)
    array = (read_legacy if legacy else read_archive)(path).arrays["a"]
    assert array.dtype.name == kind
    np.testing.assert_array_equal(array.read().astype(np.float32), value.to(getattr(torch, kind)).float())


CANARY = "import pathlib; pathlib.Path({!r}).touch()"


class _Calls:
    """A pickle of this calls `function`, which is looked up by `module` and name."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def _helper(*_):
    raise AssertionError("something of the pickle's was called")


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("exec", lambda canary: _Calls(exec, CANARY.format(canary))),
        ("run", lambda canary: _Calls(subprocess.run, ["touch", canary])),
        ("system", lambda canary: _Calls(os.system, f"touch {canary}")),
        ("import_module", lambda canary: _Calls(importlib.import_module, "this")),
        ("system", lambda canary: functools.partial(os.system, f"touch {canary}")),
    ],
)
def test_harm_beside_good_weights_is_refused_and_not_run(weights, tmp_path, name, hostile):
    canary = str(tmp_path / "canary")
    torch.save({"model": {"a": weights["plain"]}, "args": hostile(canary)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=rf"asks for [\w.]*{name}, .*nothing was executed"):
        read_archive(tmp_path / "m.pt")
    assert not (tmp_path / "canary").exists()


def test_a_function_of_anyones_is_neither_imported_nor_called(weights, tmp_path):
    name = "a_module_that_must_not_be_imported"
    (tmp_path / f"{name}.py").write_text(CANARY.format(str(tmp_path / "canary")))
    stream = pickle.dumps({"a": _Calls(_helper, 1), "b": _Calls(_helper, state={"x": 1})}, 2)
    stream = stream.replace(f"c{__name__}\n".encode(), f"c{name}\n".encode())
    assert name.encode() in stream
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", stream)
    sys.path.insert(0, str(tmp_path))
    try:
        assert set(read_archive(tmp_path / "m.pt").arrays) == {"a", "b"}
    finally:
        sys.path.remove(str(tmp_path))
    assert name not in sys.modules and not (tmp_path / "canary").exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    before = inert._rebuild_tensor.__defaults__, dict(vars(inert._rebuild_tensor))
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", stream)
    with pytest.raises(UserError, match="not an object"):
        read_archive(tmp_path / "m.pt")
    assert (inert._rebuild_tensor.__defaults__, dict(vars(inert._rebuild_tensor))) == before


def test_a_tensor_of_something_that_is_no_storage(tmp_path):
    stream = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor\n(K\x01K\x02\x86K\x00))tRs."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", stream)
    with pytest.raises(UserError, match="without a storage"):
        read_archive(tmp_path / "m.pt")
