"""Find each use of a library's private or undocumented interface, and check that it is still there.

docs/architecture.md lists all of it. Where using it is tested in other modules, that table names them.
"""

import ast
import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from array_record.python import array_record_module
from jax._src import cloud_tpu_init, clusters
from jax._src.distributed import global_state
from jax._src.lib import _jax

import inti_jax
from inti_jax.distributed import joining
from tests.processes import environment, free_address

ROOT = Path(inti_jax.__file__).parent
# Modules without a leading underscore that are as private.
UNDOCUMENTED = ("jaxlib", "multiprocessing.util", "tensorboard.compat")


def private_imports(path):
    """The modules and names that a file imports from other packages' private parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            own = name.partition(".")[0] in ("inti_jax", "__future__")
            hidden = any(part.startswith("_") for part in name.split(".")) or name.startswith(UNDOCUMENTED)
            if hidden and not own:
                yield name


def test_the_table_lists_each_file_with_a_private_import():
    found = {str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.py")) if any(private_imports(path))}
    assert found == {
        "cost/hlo.py",
        "data/loading/processes.py",
        "distributed/coordination.py",
        "distributed/joining.py",
        "runs/writers/tensorboard.py",
    }
    section = (ROOT.parent / "docs" / "architecture.md").read_text()
    section = section.partition("### Private interfaces\n")[2].partition("\n##")[0]
    rows = [re.findall(r"`([\w/]+\.py)`", line) for line in section.splitlines() if line.startswith("| `")]
    files, tests = [row[0] for row in rows], [row[-1] for row in rows]
    assert found <= set(files) and all((ROOT / name).is_file() for name in files)
    assert all((ROOT.parent / "tests" / name).is_file() for name in tests)


# jax


def test_the_state_of_jax_distributed_has_a_client_and_its_place():
    assert {"client", "process_id", "num_processes"} <= set(vars(type(global_state)) | vars(global_state))
    methods = (
        "key_value_set",
        "key_value_try_get",
        "key_value_dir_get",
        "blocking_key_value_get",
        "wait_at_barrier",
    )
    assert all(callable(getattr(_jax.DistributedRuntimeClient, name)) for name in methods)


def test_jax_finds_the_processes_of_a_cluster_without_connecting(monkeypatch):
    asked = list(inspect.signature(clusters.ClusterEnv.auto_detect_unset_distributed_params).parameters)
    assert asked == [
        "coordinator_address",
        "num_processes",
        "process_id",
        "local_device_ids",
        "cluster_detection_method",
        "initialization_timeout",
    ]
    values = {"JOB_ID": 7, "STEP_NODELIST": "node[3-4]", "PROCID": 1, "LOCALID": 0, "NTASKS": 2}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = joining._cluster(None, None, None)
    assert (found.process_count, found.process_id) == (2, 1)
    assert re.fullmatch(r"node3:\d+", found.coordinator_address)


def test_jax_says_whether_this_is_a_tpu_machine():
    assert cloud_tpu_init.running_in_cloud_tpu_vm is False


def test_jax_aborts_a_process_whose_coordinator_is_gone():
    """Break a client's connection; if the client outlives it, relay.py may not be needed any more."""
    script = (
        "import sys, time, jax\n"
        "jax.config.update('jax_enable_recoverability', sys.argv[3] == 'True')\n"
        "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
        "print('connected', flush=True)\n"
        "time.sleep(60)\n"
    )
    pairs = []
    for recoverable in (False, True):
        address = free_address()
        pairs.append([
            subprocess.Popen(
                [sys.executable, "-c", script, address, str(index), str(recoverable)],
                env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for index in (0, 1)
        ])  # fmt: skip
    try:
        for coordinator, other in pairs:
            assert [process.stdout.readline() for process in (coordinator, other)] == ["connected\n"] * 2
            coordinator.kill()
        assert [other.wait(30) for _, other in pairs] == [-signal.SIGABRT] * 2
    finally:
        for process in (process for pair in pairs for process in pair):
            process.kill()
            process.communicate()


# ArrayRecord


def test_array_record_names_the_systems_error_as_the_builders_expect():
    writer = array_record_module.ArrayRecordWriter("/dev/full", "group_size:1")
    with pytest.raises(RuntimeError, match=r"\(\) failed: No space left on device;"):
        writer.write(b"record")
        writer.close()
