import errno
import json
import math
from pathlib import Path

import pytest

from inti_jax.errors import UserError
from inti_jax.runs.writers.jsonl import JsonLines, read_metrics
from tests.configs import tiny


def steps(workdir):
    return [each["step"] for each in read_metrics(workdir)]


def test_records_are_in_the_file_before_a_checkpoint_is(tmp_path):
    writer = JsonLines(tmp_path, tiny(), None)
    writer.write(1, "train", {"loss": 2.0}, ())
    writer.settle()
    writer.write(2, "train", {"loss": math.inf}, ())
    writer.close()
    assert steps(tmp_path) == [1, 2]


def test_a_run_that_goes_on_drops_later_records_but_for_faults(tmp_path):
    for from_step in (None, 2):
        writer = JsonLines(tmp_path, tiny(), from_step)
        for step in (1, 2, 3) if from_step is None else (3,):
            writer.write(step, "train", {"start": from_step}, ())
        writer.write(4, "fault", {"ids": ["a"]}, ())
        writer.close()
    found = [(each["step"], each["split"], each.get("start", 0)) for each in read_metrics(tmp_path)]
    assert found == [
        (1, "train", None),
        (2, "train", None),
        (4, "fault", 0),
        (3, "train", 2),
        (4, "fault", 0),
    ]


def test_a_full_disk_raises_an_error_with_the_name(tmp_path):
    writer = JsonLines(tmp_path, tiny(), None)
    writer.write(1, "train", {"loss": 1.0}, ())
    writer._file.close()
    writer._file = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        writer.write(2, "train", {"loss": 1.0}, ())
    assert caught.value.filename == str(tmp_path / "metrics.jsonl") and caught.value.errno == errno.ENOSPC
    writer.close()  # does not fail again
    assert steps(tmp_path) == [1]


def test_records_that_are_no_records_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train"}) + "\n\0\0\0\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a record"):
        read_metrics(tmp_path)
