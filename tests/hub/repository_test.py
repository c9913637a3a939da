"""Files of a repository: downloaded once, whole or not at all, and explained in a line where that fails."""

import logging

import pytest

from inti_jax.errors import UserError
from inti_jax.hub.names import HubName
from inti_jax.hub.repository import Repository, pin

NAME = HubName("org/name")
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
SECRET = "hf_secretsecretsecret"


def blobs(tmp_path):
    return [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "blobs"]


def refusal(name=NAME, file="config.json"):
    """The one line that getting a file ends with."""
    with pytest.raises(UserError) as raised:
        Repository(name).get(file)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_is_downloaded_once(hub):
    hub.publish("org/name", FILES)
    for _ in range(2):
        assert Repository(NAME).get("model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads() == ["model.safetensors"]


def test_a_commit_in_the_cache_needs_no_connection(hub):
    commit = hub.publish("org/name", FILES)
    pinned = pin(NAME)
    assert (pinned.revision, pinned.pinned, str(pinned)) == (commit, True, f"hf://org/name@{commit}")
    Repository(pinned).get("config.json")
    before = len(hub.requests)
    assert Repository(pinned).get("config.json").read_bytes() == FILES["config.json"]
    assert len(hub.requests) == before


def test_a_name_stands_for_its_commit_while_the_branch_moves_on(hub):
    pinned = HubName("org/name", hub.publish("org/name", FILES))
    hub.publish("org/name", {"config.json": b"{}"})
    assert Repository(pinned).get("config.json").read_bytes() == FILES["config.json"]
    assert Repository(NAME).get("config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("fault", ["offline", "down"])
def test_without_a_connection_the_cache_is_used(hub, offline, fault):
    hub.publish("org/name", FILES)
    Repository(NAME).get("config.json")
    if fault == "offline":
        offline()
    hub.down = True
    assert Repository(NAME).get("config.json").read_bytes() == FILES["config.json"]
    repository = Repository(NAME)
    assert "config.json" in repository and "model.safetensors" not in repository


def test_without_a_connection_and_cache_it_is_said(hub, offline):
    hub.publish("org/name", FILES)
    hub.down = True
    assert "hf://org/name: it is not in the cache, and the Hub cannot be reached" in refusal()
    offline()
    assert "not in the cache, and HF_HUB_OFFLINE is set" in refusal()


def test_a_page_in_place_of_the_hub_is_said(hub):
    hub.publish("org/name", FILES)
    hub.portal = True
    assert "hf://org/name: the Hub's answer is not understood: JSONDecodeError" in refusal()


def test_a_download_that_breaks_off_leaves_nothing(hub, tmp_path):
    hub.publish("org/name", FILES)
    repository = Repository(NAME)
    assert "config.json" in repository
    hub.cut["model.safetensors"] = [5000]
    hub.down_after_cut = True
    with pytest.raises(UserError, match="the Hub answers with error 503"):
        repository.get("model.safetensors")
    assert blobs(tmp_path) == []
    hub.down = hub.down_after_cut = False
    assert Repository(NAME).get("model.safetensors").read_bytes() == WEIGHTS


def test_a_cut_download_goes_on_where_it_was_cut(hub, tmp_path):
    hub.publish("org/name", FILES)
    hub.cut["model.safetensors"] = [5000]
    assert Repository(NAME).get("model.safetensors").read_bytes() == WEIGHTS
    ranges = [each.range for each in hub.requests if each.method == "GET" and "/resolve/" in each.path]
    assert ranges[0] is None and ranges[1] == "bytes=5000-"
    assert len(blobs(tmp_path)) == 1


@pytest.mark.parametrize("instead", [WEIGHTS[:-1] + b"x", WEIGHTS[:-1], WEIGHTS + b"x"])
def test_other_bytes_than_listed_are_refused_and_not_kept(hub, tmp_path, instead):
    hub.publish("org/name", FILES)
    hub.instead["model.safetensors"] = instead
    said = refusal(file="model.safetensors")
    assert "the bytes of model.safetensors are not those that the Hub lists" in said
    assert blobs(tmp_path) == []
    hub.instead.clear()
    assert Repository(NAME).get("model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_was_damaged_in_the_cache_is_refused_once(hub):
    hub.publish("org/name", FILES)
    for file in FILES:
        path = Repository(NAME).get(file)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert "are not those that the Hub lists" in refusal(file=file)
        assert Repository(NAME).get(file).read_bytes() == FILES[file]


def test_what_does_not_exist_is_named(hub):
    hub.publish("org/name", FILES)
    assert "the repository has no revision v9" in refusal(HubName("org/name", "v9"))
    assert "has no revision" in refusal(HubName("org/name", "0" * 40))
    assert "the repository has no file other.bin" in refusal(file="other.bin")
    assert "no such repository, or it is private" in refusal(HubName("org/other"))
    said = refusal(HubName("org/other", written="org/other"))
    assert said.startswith(
        "org/other: there is no such file or directory; as a name on the Hugging Face Hub: "
    )


@pytest.mark.parametrize("gated", [False, True])
def test_without_the_right_to_read_the_token_is_named_and_never_shown(hub, monkeypatch, caplog, gated, capfd):
    caplog.set_level(logging.DEBUG)
    hub.publish("org/name", FILES, token=SECRET, gated=gated)
    assert "HF_TOKEN" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert "HF_TOKEN" in (said := refusal()) and "wrongwrong" not in said
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert Repository(NAME).get("config.json").read_bytes() == FILES["config.json"]
    assert hub.requests[-1].token == SECRET
    output = capfd.readouterr()
    assert "secretsecret" not in caplog.text + output.out + output.err


def test_a_token_that_is_kept_on_the_machine_is_not_sent(hub, tmp_path):
    hub.publish("org/name", FILES)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(SECRET)
    Repository(NAME).get("config.json")
    assert {each.token for each in hub.requests} == {None}


def test_hostile_names_in_a_listing_are_no_files(hub, tmp_path):
    hostile = [
        "../../../escaped",
        "/etc/escaped",
        "a/../../escaped",
        "C:\\escaped",
        "..\\escaped",
        "line\nbreak",
    ]
    hub.publish("org/name", {**FILES, **dict.fromkeys(hostile, b"x")})
    repository = Repository(NAME)
    repository.get("config.json")
    for file in hostile:
        with pytest.raises(UserError):
            repository.get(file)
    assert hub.downloads() == ["config.json"]
    assert not list(tmp_path.rglob("*escaped*"))
