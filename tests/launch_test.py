"""The launch scripts: what they would run, and what they do when a run ends one way or another."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path("launch")
POD = ("tpu_pod.sh", "train", "k400", "--zone", "us-west4-a", "--type", "v5litepod-16")
MAIN = ("--config", "configs/k400_vit_b16.py:method=aim", "--workdir", "bucket/runs/k 400")


def launch(script, *arguments, path=None, **environment):
    environment = os.environ | environment | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    return subprocess.run(
        [str(LAUNCH / script), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_help(script):
    result = launch(script, "--help")
    assert result.returncode == 0 and f"launch/{script}" in result.stdout and "set -e" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("lock.sh", ("--upgrad",), "error: give nothing or --upgrade, not '--upgrad'"),
        ("try_versions.sh", ("python3",), "error: give a Python and a lock"),
        ("try_versions.sh", ("python9.9", "requirements.txt"), "error: python9.9 is not on the PATH"),
        ("try_versions.sh", ("python3", "absent.txt"), "error: there is no lock absent.txt here"),
    ],
)
def test_scripts_for_locks_refuse_a_mistake_before_they_install(script, arguments, message):
    result = launch(script, *arguments)
    assert result.returncode in (1, 2) and result.stdout == "" and result.stderr.startswith(message)


def test_a_pod_from_beginning_to_end():
    result = launch(*POD, "--spot", "--bucket", "gs://b", "--slices", "2", "--dry-run", "--", *MAIN)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    create, archive, *others, delete = lines
    assert create.startswith("gcloud compute tpus queued-resources create k400 --zone us-west4-a")
    for part in ("--accelerator-type v5litepod-16", "v2-alpha-tpuv5-lite", "--node-count 2", "--spot"):
        assert part in create
    assert archive.startswith("git archive") and delete.startswith(
        "gcloud compute tpus queued-resources delete k400"
    )
    for step in ("tpu-vm scp", r"worker.sh\ install\ b", r"worker.sh\ start", r"worker.sh\ status"):
        nodes = [line.split("tpu-vm ")[1].split() for line in others if step in line]
        assert len(nodes) == 2 and all("--worker=all" in node for node in nodes), step
    # What a worker's shell makes of it is what was given.
    start = next(line for line in others if "start" in line)
    (command,) = subprocess.check_output(
        ["bash", "-c", f'set -- {start}; printf %s "${{@: -1}}"'], text=True
    ).splitlines()
    arguments = subprocess.check_output(
        ["bash", "-c", f"set -- {command}; shift 2; printf '%s\\n' \"$@\""], text=True
    )
    assert arguments.splitlines() == list(MAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grow", "k400", "--zone", "z"), "unknown command grow"),
        (("delete", "k400"), "--zone is missing"),
        (("create", "k400", "--zone", "z"), "--type is missing"),
        (("create", "k400", "--zone", "z", "--type", "v99-8"), "--runtime is missing"),
        (("create", "K 400", "--zone", "z", "--type", "v4-8"), "NAME should have lower-case"),
        (
            ("create", "k400", "--zone", "z", "--type", "v4-8", "--slices", "0"),
            "--slices should be a positive number",
        ),
        (("train", "k400", "--zone", "z", "--type", "v4-8"), "give the arguments of inti_jax.main"),
        (
            ("train", "k400", "--zone", "z", "--type", "v4-8", "--spot", "--", "x"),
            "--spot needs --workdir gs://",
        ),
        (("logs", "k400", "--zone", "z", "--tail"), "unknown argument --tail"),
        (("logs", "k400", "--zone"), "--zone takes a value"),
        (("logs", "k400", "--zone", "z"), "gcloud is not on the PATH"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    for tool in ("bash", "dirname", "env", "sed", "date"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    result = launch("tpu_pod.sh", *arguments, PATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stdout == ""


def tool(directory, name, text):
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


CLOUD = """
echo "$*" >> "$CALLS"
case "$*" in
  *"queued-resources create"*) touch "$CALLS.there" ;;
  *"queued-resources delete"*) rm -f "$CALLS.there" ;;
  *"queued-resources describe"*) if [ -e "$CALLS.there" ]; then echo ACTIVE; else exit 1; fi ;;
  *"worker.sh status"*) next=$(head -n 1 "$CALLS.ends"); sed -i 1d "$CALLS.ends"; echo "status: $next" ;;
  *"worker.sh log"*) echo "[host] what it said" ;;
esac
"""


@pytest.mark.parametrize(
    ("ends", "status", "starts"),
    [(["running", "0"], 0, 1), (["143", "running", "143", "0"], 0, 3), (["running", "1"], 1, 1)],
)
def test_a_preempted_run_goes_on_and_a_failed_one_does_not(ends, status, starts, tmp_path):
    calls = tmp_path / "calls"
    (tmp_path / "calls.ends").write_text("\n".join(ends) + "\n")
    tool(tmp_path, "gcloud", CLOUD)
    tool(tmp_path, "sleep", "")
    name = "watch-test"
    log = Path(f"{name}.log")
    try:
        result = launch(
            "tpu_pod.sh", "train", name, *POD[3:], "--spot", "--bucket", "b", "--", *MAIN,
            path=tmp_path, CALLS=str(calls),
        )  # fmt: skip
        assert result.returncode == status, result.stderr
        assert log.read_text() == "[host] what it said\n"
    finally:
        log.unlink(missing_ok=True)
    made = calls.read_text()
    assert made.count("worker.sh start") == made.count("queued-resources create") == starts
    assert not (tmp_path / "calls.there").exists()  # nothing that costs is left


def worker(directory, *arguments):
    return subprocess.run(
        [str(directory / "launch" / "worker.sh"), *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_a_worker_says_how_its_run_ended(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "worker.sh", tmp_path / "launch")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    tool(tmp_path / ".venv" / "bin", "python", 'echo "$3"; sleep 0.3; exit 143')
    worker(tmp_path, "start", "--workdir=a b")
    assert worker(tmp_path, "status") == "status: running\n"
    deadline = time.monotonic() + 20
    while worker(tmp_path, "status") == "status: running\n" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert worker(tmp_path, "status") == "status: 143\n"
    assert worker(tmp_path, "log").endswith("] --workdir=a b\n")


def test_a_job_of_slurm():
    result = launch("slurm.sbatch", "--dry-run", *MAIN)
    assert result.returncode == 0 and result.stdout.startswith("srun ")
    assert (
        r"inti_jax.main --config configs/k400_vit_b16.py:method=aim --workdir bucket/runs/k\ 400"
        in result.stdout
    )
    for arguments in ((), ("--dry-run",)):
        assert "give the arguments of inti_jax.main" in launch("slurm.sbatch", *arguments).stderr
    assert "submit this script with sbatch" in launch("slurm.sbatch", *MAIN).stderr


@pytest.mark.parametrize(
    ("run", "signalled", "status", "requeued"),
    [
        ("sleep 60 & trap 'sleep 0.5; kill $!; exit 143' TERM; echo up >> calls; wait", True, 143, True),
        ("sleep 60 & trap 'sleep 0.5; kill $!; exit 1' TERM; echo up >> calls; wait", True, 1, False),
        ("exit 143", False, 143, True),
        ("exit 1", False, 1, False),
        ("exit 0", False, 0, False),
    ],
)
def test_a_job_is_queued_again_when_it_has_saved(run, signalled, status, requeued, tmp_path):
    tool(tmp_path, "srun", run)
    tool(tmp_path, "scontrol", 'echo "$*" >> calls')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    tool(tmp_path / ".venv" / "bin", "python", "")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    process = subprocess.Popen([str(LAUNCH / "slurm.sbatch"), *MAIN], env=environment, start_new_session=True)
    calls = tmp_path / "calls"
    if signalled:
        deadline = time.monotonic() + 20
        while not calls.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == status
    assert ("requeue 7" in (calls.read_text() if calls.exists() else "")) == requeued


def test_the_job_set_is_one_that_gke_takes():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = (each["template"]["spec"] for each in jobs["spec"]["replicatedJobs"])
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy needs
    (container,) = pod["containers"]
    assert container["name"] == job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    # The command is one that the parser takes.
    python, *arguments = container["command"]
    assert python == "python"
    # Without the variable, gcsfs asks for the account of a machine in the cloud, for seconds.
    result = subprocess.run(
        [sys.executable, *arguments, "--process_id", "0"],
        env=os.environ | {"FSSPEC_GCS_TOKEN": "anon"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "give all three" in result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="there is no shellcheck")
def test_shellcheck_finds_nothing():
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    result = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
