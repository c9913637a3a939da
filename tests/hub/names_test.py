"""The names of the Hub: their forms, and what wins where a name may be a path as well."""

from pathlib import Path

import pytest

from inti_jax.errors import UsageError
from inti_jax.hub import names
from inti_jax.hub.names import HubName

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://openai/clip-vit-base-patch16", HubName("openai/clip-vit-base-patch16")),
        ("hf://org/name@v1.0", HubName("org/name", "v1.0")),
        (f"hf://org/name@{COMMIT}/b16.safetensors", HubName("org/name", COMMIT, "b16.safetensors")),
        ("hf://org/name/sub/b16.safetensors", HubName("org/name", None, "sub/b16.safetensors")),
        ("hf://org/name@refs/pr/3/b16.safetensors", HubName("org/name", "refs/pr/3", "b16.safetensors")),
        ("hf://org/name@feature%2Fx", HubName("org/name", "feature/x")),
        ("openai/clip-vit-base-patch16", HubName("openai/clip-vit-base-patch16")),
        ("org/name@v1", HubName("org/name", "v1")),
        ("ViT-B-16/openai", HubName("timm/vit_base_patch16_clip_224.openai")),
        ("ViT-B-16/OpenAI@v1", HubName("timm/vit_base_patch16_clip_224.openai", "v1")),
        ("ViT-B-16-SigLIP/webli", HubName("timm/ViT-B-16-SigLIP")),
    ],
)
def test_a_name_is_read_and_written_back(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = names.place(text)
    assert found == expected
    assert names.place(str(found)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "random",
        "b16.safetensors",
        "weights/b16.safetensors",
        "weights/b16.pt",
        "/org/name",
        "../org",
        "~/x/y",
        "a/b/c",
    ],
)
def test_paths_are_paths(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not isinstance(names.place(text), HubName)


def test_a_path_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names.place(Path("org/name")) == Path("org/name")


def test_weights_that_a_model_of_open_clip_does_not_have_are_listed():
    with pytest.raises(UsageError, match=r"ViT-L-14-336/laion: .* known here are openai$"):
        names.place("ViT-L-14-336/laion")


def test_what_exists_here_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert names.place("org/name").is_dir()
    assert isinstance(names.place("hf://org/name"), HubName)


@pytest.mark.parametrize(
    "text",
    [
        "hf://org",
        "hf://",
        "hf:///name",
        "hf://org/../x",
        "hf://org/name/../../etc/passwd",
        "hf://org/name//etc",
        "hf://org/name/a\\b",
        "hf://org/name@/x",
        "hf://org/name@..",
        "hf://org/name@a%2F..%2F..%2Fb",
        "hf://org/name/line\nbreak",
        "hf://datasets/org/name",
        "hf://org/na--me",
    ],
)
def test_a_malformed_name_is_refused_in_a_line(text):
    with pytest.raises(UsageError) as raised:
        names.place(text)
    assert "\n" not in str(raised.value) and "hf://" in str(raised.value)
