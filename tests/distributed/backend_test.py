"""Commands and functions where the platform that JAX is told to use is not there."""

import subprocess
import sys

import pytest

from inti_jax.distributed import backend, joining
from tests.main_test import start


@pytest.mark.parametrize(
    ("platform", "arguments"),
    [
        ("tpu", ["main", "--config", "configs/quickstart.py", "--workdir", "{}/run"]),
        ("gpu", ["predict", "--checkpoint", "{}", "{}/video.mp4"]),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(platform, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    result = start(*(argument.format(tmp_path) for argument in arguments))
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such devices")
    assert "JAX_PLATFORMS=cpu" in last and ("jax[tpu]" if platform == "tpu" else "jax[cuda13]") in last
    assert not list(tmp_path.iterdir())


_LOAD = """
import inti_jax
from inti_jax.errors import UserError

for load in (inti_jax.load, inti_jax.load_clip):
    try:
        load("absent")
    except UserError as error:
        print(error)
"""


def test_so_it_is_in_python(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such")
    done = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True)
    assert done.stdout.count("JAX_PLATFORMS=no_such: JAX finds no such devices") == 2


def test_a_tpu_machine_says_whether_it_is_one_of_several(monkeypatch):
    monkeypatch.setattr(joining.cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "one,two")
    assert backend.platforms() == "cpu" and not joining._on_tpu_pod()  # as tests are told
    monkeypatch.setattr(backend, "platforms", lambda: "")
    assert joining._on_tpu_pod()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "one")
    assert not joining._on_tpu_pod()
