from pathlib import Path

import pytest
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from inti_jax.runs.writers.tensorboard import TensorBoard
from tests.configs import tiny


def test_tensorboard_reads_what_is_written(tmp_path):
    for start in (None, 1):
        writer = TensorBoard(tmp_path, tiny(), start)
        writer.write(2, "train", {"loss": 0.5, "ids": ["a"], "dataset": "b"}, ())
        writer.close()
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    found = []
    for path in files:
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    values = [(event.step, v.tag, v.simple_value) for event in found for v in event.summary.value]
    assert values == [(2, "train/loss", 0.5)] * 2
    (purge,) = [event.step for event in found if event.HasField("session_log")]
    assert purge == 2


def test_a_full_disk_raises_an_error_with_the_name(tmp_path):
    writer = TensorBoard(tmp_path, tiny(), 1)
    writer._records.close()
    writer._records = RecordWriter(Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        writer.write(2, "train", {"loss": 1.0}, ())
    assert caught.value.filename.startswith(str(tmp_path / "tensorboard"))
    writer.close()  # does not fail again
