import subprocess
import sys
import time

SCRIPT = """
import os, sys, time
from pathlib import Path
from inti_jax.host.locks import HeldError, held

directory, count = Path(sys.argv[1]), Path(sys.argv[1]) / "count"
(directory / f"ready-{os.getpid()}").touch()
while not (directory / "go").exists():
    time.sleep(0.001)
end = time.monotonic() + 60
while count.stat().st_size < 30 and time.monotonic() < end:
    try:
        with held(directory / "made" / "lock"):
            os.close(os.open(directory / "one", os.O_CREAT | os.O_EXCL))  # fails where two hold it
            with count.open("ab") as file:
                file.write(b".")
            (directory / "one").unlink()
    except HeldError:
        pass
    if os.getpid() % 2:
        try:
            (directory / "made").rmdir()
        except OSError:
            pass
"""


def test_two_never_hold_a_file_however_often_it_is_removed(tmp_path):
    (tmp_path / "count").touch()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(processes):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "count").stat().st_size >= 30  # not in equal shares: a lock promises no turns
