"""Check files in S3, as Moto keeps them: what comes back, and what users are told where it does not."""

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import inti_jax
from inti_jax.errors import UserError
from inti_jax.host import paths, stores
from tests import commands

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def address():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def variables(address, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(tmp_path):
    """The URL of a directory of its own; fsspec makes the bucket."""
    files = stores._filesystem("s3")
    if not files.exists("bucket"):
        files.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def test_a_file_comes_back_from_the_cache_until_it_changes(bucket, tmp_path):
    url, file = f"{bucket}/a/f.bin", tmp_path / "content"
    file.write_bytes(b"first")
    stores.upload(file, url)
    path = paths.input_path(url)
    assert path.read_bytes() == b"first" and stores.origin(path) == url
    assert paths.input_path(url) == path
    file.write_bytes(b"other")
    stores.upload(file, url)
    assert paths.input_path(url).read_bytes() == b"other" and stores.read(url) == b"other"
    assert list(stores.entries(f"{bucket}/a")) == ["f.bin"]
    stores.delete(f"{bucket}/a")
    assert stores.entries(f"{bucket}/a") == {} and not stores.is_file(url)


def test_a_trained_model_is_written_loaded_and_asked_from_there(trained_run, bucket):
    url = f"{bucket}/trained.safetensors"
    assert commands.convert(trained_run, "--to", "trained", "--out", url) == 0
    video = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(inti_jax.load(url)(video), inti_jax.load(trained_run)(video))


def test_what_is_not_there_and_what_s3_cannot_hold_is_one_line(bucket):
    for url, message in (
        (f"{bucket}/absent", f"{bucket}/absent does not exist"),
        ("s3://absent-bucket/f", "s3://absent-bucket/f does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            paths.input_path(url)
    with pytest.raises(UserError, match=r"runs lie on a disk or in gs:// alone, since Orbax opens no other"):
        paths.run_path(f"{bucket}/run")
