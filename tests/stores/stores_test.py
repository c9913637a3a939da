"""Check what reaches a store and comes back, and what users are told where it does not."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import inputs
from inti_jax.host import mirrors, paths, stores
from tests.stores.emulator import Faults


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inti_jax"


def put(url, content, tmp_path):
    file = tmp_path / "content"
    file.write_bytes(content)
    stores.upload(file, url)


def test_a_file_comes_back_from_the_cache_until_it_changes(bucket, emulator, tmp_path, cache):
    url = f"{bucket}/a/f.bin"
    put(url, b"first", tmp_path)
    path = paths.input_path(url)
    assert path.read_bytes() == b"first" and path.name == "f.bin" and path.is_relative_to(cache)
    assert stores.origin(path) == url
    assert stores.shown(f"{path}: damaged") == f"{url}: damaged"
    downloads = len([path for _, path in emulator.requests if "alt=media" in path])
    assert paths.input_path(url) == path
    assert len([path for _, path in emulator.requests if "alt=media" in path]) == downloads
    put(url, b"other", tmp_path)
    assert paths.input_path(url).read_bytes() == b"other"
    assert path.read_bytes() == b"first"  # which another process may be reading
    assert list(stores.entries(f"{bucket}/a")) == ["f.bin"]
    stores.delete(f"{bucket}/a")
    stores.delete(f"{bucket}/a")
    assert stores.entries(f"{bucket}/a") == {}


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("{bucket}/absent", UserError, "absent does not exist"),
        ("{bucket}", UserError, "is a directory, and a file is meant"),
        ("gs://absent-bucket/x", UserError, "does not exist"),
        ("gss://bucket/x", UsageError, "gss://bucket/x is a URL of an unknown kind"),
        ("gs://bucket/a/../b", UsageError, "names nothing: it should read gs://NAME/PATH"),
        ("gs:///b", UsageError, "names nothing"),
        ("http://u:secret@127.0.0.1:1/x?token=secret", UserError, "http://127.0.0.1:1/x cannot be reached"),
    ],
)
def test_what_cannot_be_read_is_one_line(url, error, message, bucket, tmp_path):
    put(f"{bucket}/f", b"", tmp_path)
    with pytest.raises(error, match=message.replace("?", r"\?")) as caught:
        paths.input_path(url.format(bucket=bucket))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/w.pt?token=secret", "https://u:secret@host/w.pt"])
def test_credentials_are_not_kept_in_a_config(url):
    with pytest.raises(
        ConfigError, match=r"https://host/w\.pt: config.json would keep the credent"
    ) as caught:
        config.load_config("quickstart", [f"--config.model.pretrained={url}"])
    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_and_a_permission_that_lacks_are_said(bucket, emulator, tmp_path):
    with pytest.raises(UserError, match="there is no bucket `absent-bucket`"):
        paths.run_path("gs://absent-bucket/run")
    emulator.faults = Faults(may_write=False)
    with pytest.raises(UserError, match=f"{bucket}/f: no permission"):
        put(f"{bucket}/f", b"x", tmp_path)


def test_the_web_is_only_read_from(emulator, bucket, tmp_path):
    put(f"{bucket}/f.mp4", b"video", tmp_path)
    place = bucket.removeprefix("gs://")
    assert paths.input_path(f"{emulator.address}/{place}/f.mp4").read_bytes() == b"video"
    with pytest.raises(UsageError, match="the web can only be read from"):
        paths.output_path(f"{emulator.address}/{place}/out.csv")


def test_an_extra_that_is_not_installed_is_one_line(tmp_path):
    script = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from inti_jax.host.command import run_command\n"
        "from inti_jax.host.paths import run_path\n"
        "run_command(lambda: run_path('gs://bucket/run'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: gs:// needs a library that is not installed: run `pip install 'inti_jax[gcs]'`\n"
    )


def test_what_a_command_writes_arrives_when_it_ends_also_where_it_fails(bucket, emulator):
    script = (
        "import sys\n"
        "from inti_jax.errors import UserError\n"
        "from inti_jax.host.command import run_command\n"
        "from inti_jax.host.paths import output_path\n"
        "def main():\n"
        "    path = output_path(sys.argv[1])\n"
        "    path.write_text('so far')\n"
        "    raise UserError(f'{path}: the rest is missing')\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", script, f"{bucket}/out.csv"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {bucket}/out.csv: the rest is missing"
    assert stores.read(f"{bucket}/out.csv") == b"so far"


# Mirrors.


def test_a_mirror_takes_changes_to_the_store_and_brings_them_back(bucket, emulator):
    url = f"{bucket}/run"
    first = mirrors.mirror(url)
    assert list(first.iterdir()) == []
    (first / "metrics.jsonl").write_text("1\n")
    (first / "predictions").mkdir()
    (first / "predictions" / "4.npz").write_bytes(b"four")
    (first / "config.json.partial").write_text("not whole")
    mirrors.push(first)
    assert sorted(stores.entries(url)) == ["metrics.jsonl", "predictions/4.npz"]

    other = mirrors.mirror(url)
    assert other != first
    assert [path.name for path in other.iterdir()] == ["metrics.jsonl"]  # the rest when it is asked for
    assert mirrors.bring(other / "predictions") == other / "predictions"
    assert (other / "predictions" / "4.npz").read_bytes() == b"four"
    (other / "predictions" / "4.npz").unlink()
    (other / "metrics.jsonl").write_text("1\n2\n")
    asked = len(emulator.requests)
    mirrors.push(other)
    assert list(stores.entries(url)) == ["metrics.jsonl"]
    assert stores.read(f"{url}/metrics.jsonl") == b"1\n2\n"
    asked = len(emulator.requests)
    mirrors.push(other)
    assert len(emulator.requests) == asked  # nothing changed


def test_a_store_that_fails_for_a_while_loses_nothing(bucket, emulator, monkeypatch):
    monkeypatch.setattr(mirrors, "_INTERVAL", 0.05)
    directory = mirrors.mirror(f"{bucket}/run")
    with mirrors.pushed(directory):
        emulator.faults = Faults(unavailable=0.3, cut=0.2)
        for number in range(20):
            (directory / "metrics.jsonl").write_text(f"{number}\n")
        emulator.faults = Faults(may_write=False)
        (directory / "metrics.jsonl").write_text("last\n")
        mirrored = Path(directory / "metrics.jsonl")
        with pytest.raises(UserError, match="no permission"):
            mirrors.push(directory)
        emulator.faults = Faults()
    assert stores.read(f"{bucket}/run/metrics.jsonl") == mirrored.read_bytes() == b"last\n"


def test_a_video_that_cannot_be_fetched_is_left_out_as_one_that_does_not_decode(bucket, tmp_path):
    put(f"{bucket}/a.mp4", b"video", tmp_path)
    parser = argparse.ArgumentParser()
    inputs.add_arguments(parser)
    absent = "http://127.0.0.1:1/b.mp4"
    words = [f"{bucket}/a.mp4", absent, "--checkpoint", str(tmp_path)]
    found = inputs.collect(parser.parse_args(words))
    assert [path.read_bytes() for path in found.paths] == [b"video"]
    ((path, reason),) = found.left_out
    assert stores.shown(str(path)) == absent and "cannot be reached" in reason
