"""Labels for files, on a run's directory; `evaluate_test.py` compares them with the evaluation's."""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inti_jax import predict
from inti_jax.data.codec import decode
from inti_jax.data.dataset import FileDataset, open_dataset
from inti_jax.data.loading import batches
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import inference
from tests.data import clips
from tests.terminals import ESCAPES, Terminal, environment

pytestmark = pytest.mark.usefixtures("shallow")


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
    results = list(predict.predict_files(trained_run, [good, short], topk=1))
    assert all("predictions" in result for result in results)
    (line,) = [message for message in caplog.messages if "frames" in message]
    assert line.startswith(f"{short} has only 3 of the ") and str(good) not in line


# As a command.


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
    predict.main()


@pytest.fixture
def folder(good):
    """Five videos, of which one does not decode and one is a link that leads nowhere."""
    folder = good.parent / "folder"
    folder.mkdir()
    for name in ("a.mp4", "c.mp4", "d.mp4"):
        (folder / name).write_bytes(good.read_bytes())
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "readme.md").write_text("no video, and not called like one")
    return folder


def test_a_folder_is_labelled_into_a_csv_file(trained_run, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "labels.csv"
    arguments = ("--checkpoint", trained_run, folder, "--topk", "2", "--out", out)
    with pytest.raises(UserError, match=r"^2 of 5 videos could not be labelled$") as error:
        command(monkeypatch, *arguments)
    assert error.value.exit_code == 1
    with out.open(newline="") as file:
        rows = {Path(row["video"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "gone.mp4"]
    assert [row["status"] for row in rows.values()] == ["ok", "missing", "ok", "ok", "missing"]
    assert "Invalid data" in rows["b.mp4"]["reason"] and "cannot be reached" in rows["gone.mp4"]["reason"]
    assert rows["b.mp4"]["label"] == rows["b.mp4"]["probability_2"] == ""
    (expected,) = predict.predict_files(trained_run, [folder / "a.mp4"], topk=2)
    for place, entry in zip(("", "_2"), expected["predictions"], strict=True):
        assert rows["a.mp4"][f"label{place}"] == entry["label"]
        assert float(rows["a.mp4"][f"probability{place}"]) == pytest.approx(entry["probability"], rel=1e-5)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("error: ") == 2


def test_a_file_is_json_by_its_ending(trained_run, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "labels.json"
    arguments = ("--checkpoint", trained_run, folder, "--topk", "2", "--out", out, "--json")
    with pytest.raises(UserError, match=r"^2 of 5 videos could not be labelled$"):
        command(monkeypatch, *arguments)
    assert out.read_text() == capsys.readouterr().out
    entries = {Path(entry["video"]).name: entry for entry in json.loads(out.read_text())}
    assert list(entries) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "gone.mp4"]
    assert "Invalid data" in entries["b.mp4"]["error"] and len(entries["a.mp4"]["predictions"]) == 2


@pytest.mark.parametrize("name", ["labels.txt", "labels", "labels.jsonl"])
def test_another_ending_is_one_line(trained_run, good, tmp_path, monkeypatch, name):
    with pytest.raises(UsageError, match=r"the file's name should end in \.csv or \.json$"):
        command(monkeypatch, "--checkpoint", trained_run, good, "--out", tmp_path / name)
    assert not (tmp_path / name).exists()


def on_terminal(*words, **variables):
    """Run the command with a terminal as stdout and stderr; return its status and what the terminal gets."""
    terminal = Terminal(columns=200)
    status = subprocess.call(
        [sys.executable, "-m", "inti_jax.predict", *map(str, words)],
        # Without TQDM_MININTERVAL, nothing is drawn between two files that take less than 0.1 s.
        env=environment(200) | {"TQDM_MININTERVAL": "0", **variables},
        stdout=terminal.descriptor,
        stderr=terminal.descriptor,
    )
    return status, terminal.close()


def test_a_terminal_shows_a_table_and_a_bar_with_the_remaining_time(trained_run, folder):
    status, written = on_terminal("--checkpoint", trained_run, folder, "--topk", "2")
    assert status == 1 and "Traceback" not in written
    # What stays of each line: a bar is written over.
    lines = [ESCAPES.sub("", line.rpartition("\r")[2]) for line in written.split("\n")]
    table = [line for line in lines if re.search(r"\s0\.\d{3}\s+\w", line) or line.startswith("video")]
    header, *rows = table
    assert header.split() == ["video", "probability", "label"] and len(rows) == 3 * 2
    assert [row.split()[0] for row in rows[::2]] == [
        str(folder / name) for name in ("a.mp4", "c.mp4", "d.mp4")
    ]
    assert [row.startswith(" ") for row in rows] == [False, True] * 3
    for row in table:
        assert row.index(row.split()[-1]) == header.index("label")
    # The likelier label is in colour.
    assert len(re.findall(r"\x1b\[1;32m0\.\d{3}.*\x1b\[1;32m\w+", written)) == 3
    assert sum("error: " in line for line in lines) == 2 + 1
    assert re.search(r"predict: +\d+%\|.*\| [1-3]/4 \[\d\d:\d\d<\d\d:\d\d", written)


def test_a_folder_of_frames_is_one_video(trained_run, good, tmp_path):
    frames = decode.decode_frames(good.read_bytes(), np.arange(19))
    for number, frame in enumerate(frames):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"img_{number:05}.png")
    of_file, of_frames = predict.predict_files(trained_run, [good, tmp_path / "frames"], topk=1)
    assert of_frames["predictions"][0]["label"] == of_file["predictions"][0]["label"]


def test_a_fault_leaves_what_was_labelled_before_it(trained_run, folder, tmp_path, monkeypatch, capsys):
    """The model's values for the third file are taken for not finite, after the first two."""
    outcome = inference.FileModel._outcome

    def not_finite(self, path, found, values):
        return outcome(self, path, found, values * np.nan if path.name == "c.mp4" else values)

    monkeypatch.setattr(inference.FileModel, "_outcome", not_finite)
    out = tmp_path / "labels.csv"
    with pytest.raises(UserError, match=r"c\.mp4: the model's outputs are not finite"):
        command(monkeypatch, "--checkpoint", trained_run, folder, "--json", "--out", out)
    assert [line.split(",")[1] for line in out.read_text().splitlines()] == ["status", "ok", "missing"]
    said = capsys.readouterr()
    assert [Path(entry["video"]).name for entry in json.loads(said.out)] == ["a.mp4", "b.mp4"]


def test_an_earlier_file_stays_until_there_are_new_labels(good, tmp_path, monkeypatch):
    out = tmp_path / "labels.csv"
    out.write_text("earlier")
    with pytest.raises(UserError, match="nowhere"):
        command(monkeypatch, "--checkpoint", tmp_path / "nowhere", good, "--out", out)
    assert out.read_text() == "earlier"


def test_results_come_while_later_ones_are_computed(trained_run, good, tmp_path, monkeypatch):
    """In batches, of which no more are read ahead than the loader's threads ask for."""
    read, reads_of = [], FileDataset.__getitem__

    def counted(self, index):
        read.append(index)
        return reads_of(self, index)

    monkeypatch.setattr(FileDataset, "__getitem__", counted)
    results = predict.predict_files(trained_run, [good] * 200, topk=1)
    first = next(results)
    assert "predictions" in first and len(read) < 150
    results.close()


def test_worker_processes_find_the_same(trained_run, good, tmp_path, monkeypatch):
    """Where the model is on an accelerator, worker processes decode a long list."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    paths = [bad, good, tmp_path / "absent.mp4"]
    expected = list(predict.predict_files(trained_run, paths, topk=2))
    monkeypatch.setattr(inference, "_MANY", 1)
    monkeypatch.setattr(batches, "worker_count", lambda data, rows: 2 if data.workers < 0 else data.workers)
    pools, make = [], batches.worker_pool

    def noted(data, rows):
        pools.append(make(data, rows))
        return pools[-1]

    monkeypatch.setattr(batches, "worker_pool", noted)
    assert list(predict.predict_files(trained_run, paths, topk=2)) == expected
    assert pools != [None]


def test_any_name_is_printed_and_a_reader_may_leave(trained_run, good):
    name = good.with_name(os.fsdecode(b"caf\xe9.mp4"))
    good.rename(name)
    words = [sys.executable, "-m", "inti_jax.predict", "--checkpoint", trained_run, "--topk", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*words, *[name] * 99], env=environment, pipesize=4096, **pipes) as process:
        assert process.stdout.readline() == os.fsencode(name) + b"\n"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 128 + signal.SIGPIPE
