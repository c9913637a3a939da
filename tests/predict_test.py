"""Labels for files, on a run's directory; `evaluate_test.py` compares them with the evaluation's."""

import logging
from pathlib import Path

import pytest

from inti_jax import predict
from inti_jax.data import decode
from inti_jax.data.dataset import open_dataset
from tests.data import clips


@pytest.fixture
def good(motion_data, tmp_path):
    path = tmp_path / "good.mp4"
    path.write_bytes(open_dataset("motion_digits", motion_data, "val")[0].video)
    return path


def test_a_file_is_decoded_once_whether_it_decodes_or_not(trained_run, good, tmp_path, monkeypatch):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    decoded = []

    def once(video, choose):
        decoded.append(video)
        return decode_and_validate(video, choose)

    decode_and_validate = decode.decode_and_validate
    monkeypatch.setattr(decode, "decode_and_validate", once)
    for otherwise in ("_decode_needed", "_decode_from_start"):
        monkeypatch.delattr(decode, otherwise)
    of_good, of_bad = predict.predict_files(trained_run, [good, bad], topk=1)
    assert len(of_good["predictions"]) == 1 and "Invalid data" in of_bad["error"]
    assert sorted(decoded) == sorted(path.read_bytes() for path in (good, bad))


def test_a_file_that_could_not_be_read_is_not_read_again(trained_run, good, monkeypatch):
    failures = [OSError(5, "Input/output error")]
    read_bytes = Path.read_bytes

    def fails_once(path):
        if path == good and failures:
            raise failures.pop()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fails_once)
    (result,) = predict.predict_files(trained_run, [good], topk=1)
    assert result == {"video": str(good), "error": "it cannot be read: Input/output error"}


def test_a_file_shorter_than_a_clip_is_labelled_and_said_to_be_short(trained_run, good, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("inti_jax"), "propagate", True)
    short = good.with_name("short.mp4")
    short.write_bytes(clips.encode(clips.moving_square(3)))
    results = predict.predict_files(trained_run, [good, short], topk=1)
    assert all("predictions" in result for result in results)
    (line,) = [message for message in caplog.messages if "frames" in message]
    assert line.startswith(f"{short} has 3 of the ") and str(good) not in line
