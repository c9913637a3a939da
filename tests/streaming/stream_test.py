"""The command `stream`: what it answers on files, pipes and cameras, and that none of them hangs it."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import inti_jax
from inti_jax.streaming import feed, pacing, sources
from inti_jax.streaming.engine import Stream
from inti_jax.streaming.sources import Frame
from tests.commands import call
from tests.data import clips
from tests.streaming import rtsp

pytestmark = pytest.mark.usefixtures("shallow")

SIZE = (32, 32)  # of the run's frames


@pytest.fixture(scope="module")
def model(trained_run):
    return inti_jax.load(trained_run)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    path.write_bytes(clips.encode(clips.moving_square(40)))
    return path


def run(trained_run, *arguments):
    """The lines of the command, which succeeds, and its messages."""
    process = call("stream", "--checkpoint", trained_run, *arguments)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


def check_lines(lines, model, frames, starts, stride=2, fps=25, within=2e-3):
    assert [line["start"] for line in lines] == starts
    windows = np.stack([frames[line["start"] : line["end"] : stride] for line in lines])
    logits = model(windows)
    for line, row in zip(lines, logits, strict=True):
        assert line["end"] == line["start"] + 7 * stride + 1
        assert line["seconds"] == pytest.approx([line["start"] / fps, (line["end"] - 1) / fps], abs=within)
        best = line["predictions"][0]
        assert best["label"] == model.labels[int(row.argmax())]
        assert best["probability"] == pytest.approx(np.exp(row - np.logaddexp.reduce(row)).max(), abs=1e-5)


def test_a_file_is_labelled_window_by_window(trained_run, model, video):
    lines, _ = run(trained_run, video, "--every", "4", "--topk", "2")
    check_lines(lines, model, clips.decode_all(video.read_bytes()), [0, 8, 16, 24])
    assert all(len(line["predictions"]) == 2 for line in lines)


def test_frames_are_taken_by_their_times(trained_run, model, tmp_path):
    # 25 frames a second, of which the 5th to the 9th are not there: the 4th is shown for longer.
    video = clips.moving_square(40)
    times = [t for t in range(45) if not 5 <= t < 10]
    (tmp_path / "held.mp4").write_bytes(clips.encode(video, times=times))
    lines, _ = run(trained_run, tmp_path / "held.mp4", "--fps", "12.5", "--every", "8")
    shown = [max(number for number, at in enumerate(times) if at <= tick) for tick in range(0, 45, 2)]
    assert [(line["start"], line["end"]) for line in lines] == [
        (shown[0], shown[7] + 1),
        (shown[8], shown[15] + 1),
    ]
    decoded = clips.decode_all((tmp_path / "held.mp4").read_bytes())
    logits = model(np.stack([decoded[shown[:8]], decoded[shown[8:16]]]))
    assert [line["predictions"][0]["label"] for line in lines] == [
        model.labels[k] for k in logits.argmax(axis=1)
    ]


def test_an_encoded_pipe_and_a_raw_one_give_what_the_file_gives(trained_run, model, tmp_path, monkeypatch):
    frames = clips.moving_square(24)
    encoded = clips.encode(frames, container="mpegts")
    for data, arguments in (
        (encoded, ()),
        (clips.decode_all(encoded).tobytes() + b"half a frame", ("--size", "64x48")),
    ):
        monkeypatch.setattr("sys.stdin", piped(data))
        lines, said = run(trained_run, "-", *arguments)
        check_lines(lines, model, clips.decode_all(encoded), [0, 8])
        assert ("ended in the middle of a frame: 12 of its 9216 bytes (64 x 48 RGB)" in said) == bool(
            arguments
        )


def piped(data):
    """A stdin that is a pipe, into which `data` is written bit by bit."""
    read, write = os.pipe()

    def fill():
        with os.fdopen(write, "wb") as file:
            for start in range(0, len(data), 5000):
                file.write(data[start : start + 5000])

    threading.Thread(target=fill, daemon=True).start()
    return io.TextIOWrapper(os.fdopen(read, "rb"))


def test_a_pipe_whose_writer_is_killed_is_answered_as_far_as_it_came(
    trained_run, model, tmp_path, monkeypatch
):
    encoded = clips.encode(clips.moving_square(48), container="mpegts", gop=1, b_frames=0)
    path = tmp_path / "part.ts"
    path.write_bytes(encoded[: len(encoded) // 2])  # in the middle of a frame
    writer = subprocess.Popen(["sh", "-c", f"cat {path}; exec sleep 60"], stdout=subprocess.PIPE)
    threading.Timer(0.5, writer.kill).start()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(writer.stdout))
    lines, said = run(trained_run, "-")
    writer.wait()
    assert lines[-1]["end"] <= 24 and "Traceback" not in said
    check_lines(lines, model, clips.decode_all(encoded), [0, 8][: len(lines)])


def test_a_camera_is_labelled_until_it_hangs_up(trained_run, model):
    frames = clips.moving_square(60)
    with rtsp.serving(frames) as url:
        lines, said = run(trained_run, url, "--every", "8", "--no-drop")
    decoded = clips.decode_all(clips.encode(frames, container="h264", b_frames=0))
    # FFmpeg tells a camera's times to a frame.
    check_lines(lines, model, decoded, [0, 16, 32], within=0.05)
    assert "secret" not in said


def test_a_source_that_stalls_is_one_line_after_the_answers(trained_run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def fill():
        with pipe.open("wb") as file:
            file.write(clips.moving_square(17).tobytes())
            file.flush()
            stop.wait(60)

    stop = threading.Event()
    threading.Thread(target=fill, daemon=True).start()
    started = time.monotonic()
    process = call("stream", "--checkpoint", trained_run, pipe, "--size", "64x48", "--timeout", "0.5")
    stop.set()
    assert time.monotonic() - started < 30
    assert process.returncode == 1 and len(process.stdout.splitlines()) == 1
    assert process.stderr.splitlines()[-1] == f"error: {pipe} stalled: no frame came for 0.5 s (--timeout)"


def test_a_process_ends_while_its_stdin_hangs(trained_run):
    command = [sys.executable, "-m", "inti_jax.stream", "--checkpoint", str(trained_run), "-"]
    process = subprocess.Popen(
        [*command, "--size", "64x48", "--timeout", "1"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.wait(120) == 1
        assert process.stderr.read() == b"error: stdin stalled: no frame came for 1 s (--timeout)\n"
    finally:
        process.kill()
        process.stdin.close()
        process.stderr.close()


def test_a_camera_that_stalls_is_one_line(trained_run):
    with rtsp.serving(clips.moving_square(60), then_stalls=True) as url:
        process = call("stream", "--checkpoint", trained_run, url, "--timeout", "1")
    # A camera's frames are dropped where the machine is busy, so there may be fewer answers than windows.
    assert process.returncode == 1 and 1 <= len(process.stdout.splitlines()) <= 6
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: rtsp://127.0.0.1:") and "stalled: no frame came for 1 s" in last


def test_a_resolution_that_changes_is_answered(trained_run, tmp_path):
    parts = [
        clips.encode(clips.moving_square(16, *size), container="mpegts") for size in ((48, 64), (80, 40))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    lines, _ = run(trained_run, tmp_path / "both.ts")
    assert [line["start"] for line in lines] == [0, 8, 16]


def test_no_window_spans_what_does_not_decode(trained_run, tmp_path):
    encoded = clips.damaged(clips.encode(clips.moving_square(48), gop=1, b_frames=0), {20})
    (tmp_path / "damaged.mp4").write_bytes(encoded)
    lines, said = run(trained_run, tmp_path / "damaged.mp4")
    # The frames behind the damaged one have the numbers from 20 on.
    assert [line["start"] for line in lines] == [0, 20, 28]
    assert said.count("frames are lost") == 1


@pytest.mark.parametrize(
    ("source", "arguments", "status", "message"),
    [
        ("{}/absent.mp4", (), 1, "{}/absent.mp4: No such file or directory"),
        ("{}", (), 1, "{} is a folder: name one video"),
        ("{}/text.mp4", (), 1, "{}/text.mp4: it cannot be read: Invalid data found when processing input"),
        ("{}/empty.mp4", (), 1, "{}/empty.mp4: the file is empty"),
        ("{}/short.mp4", (), 1, "{}/short.mp4 ended before the 8 frames that a window takes"),
        ("{}/sound.mp4", (), 1, "{}/sound.mp4: it has no video stream"),
        ("rtsp://127.0.0.1:1/x", (), 1, "rtsp://127.0.0.1:1/x: it cannot be read: Connection refused"),
        ("ftp://host/x.mp4", (), 2, "ftp://host/x.mp4 is a URL of an unknown kind"),
        ("-", ("--every", "3"), 2, "`every` is 3: this model takes a multiple of 2, since its"),
        ("-", ("--every", "0"), 2, "--every is 0: it should be above 0"),
        ("-", ("--fps", "nan"), 2, "--fps is nan: it should be above 0"),
        ("-", ("--rate", "5"), 2, "--rate is of raw frames: give their --size too"),
        ("-", ("--timeout", "-1"), 2, "--timeout is -1.0"),
        ("-", ("--size", "0x5"), 2, "'0x5' is not a width and a height"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(trained_run, tmp_path, source, arguments, status, message):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "short.mp4").write_bytes(clips.encode(clips.moving_square(5)))
    (tmp_path / "sound.mp4").write_bytes(clips.sound_only())
    process = call("stream", "--checkpoint", trained_run, source.format(tmp_path), *arguments)
    assert process.returncode == status and process.stdout == ""
    assert message.format(tmp_path) in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_the_module_is_the_function_once_it_is_imported(trained_run):
    module = importlib.import_module("inti_jax.stream")
    assert inti_jax.stream is module
    assert inti_jax.stream(trained_run, every=2).every == 2


# Frames that a slow model does not take.


def counted(total):
    """A source that shows the number of each frame, as fast as it is read."""

    @contextlib.contextmanager
    def opened():
        yield (Frame(n / 25, lambda n=n: np.full((*SIZE, 3), n, np.uint8)) for n in range(total))

    return sources.Source("a camera", opened, live=True)


def every_frame(frames):
    return pacing.by_stride(frames, 1, SIZE)


def test_a_model_that_is_too_slow_sees_windows_without_holes(model, caplog):
    class Slow(Stream):
        def push(self, frames):
            time.sleep(0.002)
            return super().push(frames)

    source = counted(250)
    slowed = dataclasses.replace(source, open=lambda: throttled(source, 0.0005))
    reader = feed.Feed(slowed, every_frame, 16, drops=True)
    found = list(feed.answers(Slow(model, 4, stride=1), reader))
    assert found and reader.dropped > 0
    assert all(answer.end - answer.start == 8 for answer in found)
    hops = np.diff([answer.start for answer in found])
    assert (hops >= 4).all() and (hops > 4).any()  # in order, with holes between windows
    assert f"slower than a camera: {reader.dropped} of its frames were dropped" in caplog.text


@contextlib.contextmanager
def throttled(source, seconds):
    with source.open() as frames:

        def paced():
            for frame in frames:
                time.sleep(seconds)
                yield frame

        yield paced()


def test_a_file_waits_for_a_slow_model(model):
    reader = feed.Feed(counted(60), every_frame, 16)
    time.sleep(0.1)
    stream = Stream(model, 4, stride=1)
    found = list(feed.answers(stream, reader))
    assert [answer.start for answer in found] == list(range(0, 53, 4)) and reader.dropped == 0


def test_times_that_jump_start_anew_and_do_not_fill_the_hole():
    times = [0.0, 0.1, 0.2, 1e6, 1e6 + 0.1, 5.0, 5.1]
    frames = [Frame(at, lambda: np.zeros((*SIZE, 3), np.uint8)) for at in times]
    found = list(pacing.by_rate(frames, 10.0, SIZE, most=8))
    assert [frame.number for frame in found] == list(range(7))
    assert [frame.number for frame in found if not frame.follows] == [3, 5]
