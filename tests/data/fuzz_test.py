"""Sixty damaged and odd files, in a process of their own: a crash or a hang of the decoder fails a test."""

import json
import subprocess
import sys

from tests.data import fuzz


def test_damaged_and_odd_files_are_loaded_or_rejected_with_a_reason():
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.fuzz", "--files", "60"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    kinds = found["kinds"]
    assert found["files"] == 60 and all(kind["files"] for kind in kinds.values())
    assert found["rejected"] == found["files"] - sum(kind["valid"] for kind in kinds.values())
    assert all(reason and "\n" not in reason for reason in found["reasons"])
    for name in fuzz.REJECTED:
        assert kinds[name]["valid"] == kinds[name]["loaded"] == 0
    for name in fuzz.GOOD:
        assert kinds[name]["valid"] == kinds[name]["loaded"] == kinds[name]["files"]
    assert found["slowest_seconds"] < 10
    assert found["open_files"] < 30
    half_way, end = found["resident_bytes"].values()
    assert end < 1.1 * half_way
