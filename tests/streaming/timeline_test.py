"""Labels over time: their merging alone, and `predict --timeline` on a video whose content changes."""

import csv
import itertools
import json
import re
import tracemalloc

import numpy as np
import pytest

import inti_jax
from inti_jax.streaming import sources
from inti_jax.streaming.engine import Stream
from inti_jax.streaming.segment_files import SegmentFile, clock
from inti_jax.streaming.timeline import Curve, Labels, Point, Segment, smoothed
from tests.commands import call
from tests.data import clips


def points(*rows, step=1.0):
    return [Point(step * k, np.array(row)) for k, row in enumerate(rows)]


def merged(found, threshold=0.0, multi_label=False):
    return list(Labels("ab", threshold, multi_label=multi_label).segments(found, 0.0, lambda: 10.0))


def test_neighbours_with_one_label_are_one_segment():
    found = merged(points((0.8, 0.2), (0.6, 0.4), (0.1, 0.9), (0.7, 0.3)))
    assert [(start, end, label) for start, end, label, _ in found] == [
        (0, 1.5, "a"),
        (1.5, 2.5, "b"),
        (2.5, 10, "a"),
    ]
    assert [segment.probability for segment in found] == pytest.approx([0.7, 0.9, 0.7])


def test_what_is_unsure_has_no_label():
    assert merged(points((0.8, 0.2), (0.55, 0.45), (0.9, 0.1)), threshold=0.6) == [
        Segment(0, 0.5, "a", 0.8),
        Segment(1.5, 10, "a", 0.9),
    ]
    assert merged([]) == []


def test_labels_that_go_together_overlap_and_come_by_their_start():
    found = merged(points((0.9, 0.1), (0.9, 0.8), (0.9, 0.1), (0.1, 0.1)), threshold=0.5, multi_label=True)
    assert found == [Segment(0, 2.5, "a", pytest.approx(0.9)), Segment(0.5, 1.5, "b", 0.8)]


@pytest.mark.parametrize("seconds", [0.0, 1.9, 2.0, 5.0, 100.0])
def test_smoothing_is_the_mean_over_what_is_near(seconds):
    rows = np.random.default_rng(0).random((20, 3))
    found = list(smoothed(points(*rows), seconds))
    times = np.arange(20)
    assert [point.seconds for point in found] == times.tolist()
    near = np.abs(times[:, None] - times) <= seconds / 2
    np.testing.assert_allclose([point.probabilities for point in found], near @ rows / near.sum(1)[:, None])


def test_a_curve_of_any_length_has_few_rows():
    curve, rows = Curve(most=8), np.random.default_rng(0).random((37, 3))
    assert len(list(curve.noting(points(*rows)))) == 37
    # Three times halved: means of eight rows each.
    np.testing.assert_allclose(curve.probabilities, rows[:32].reshape(4, 8, 3).mean(axis=1))
    assert curve.seconds.tolist() == [0, 8, 16, 24]


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    still = np.full((60, 48, 64, 3), 90, np.uint8)
    parts = [clips.moving_square(60), still, clips.moving_square(60)[::-1]]
    path.write_bytes(clips.encode(np.concatenate(parts), gop=12))
    return path


def segments_of(trained_run, frames, start, end):
    """The segments of 25 frames a second, from the predictions of a stream."""
    stream = Stream(inti_jax.load(trained_run), every=4)
    found = stream.push(frames)
    times = [start + (one.start + one.end - 1) / 2 / 25 for one in found]
    edges = [start, *((a + b) / 2 for a, b in itertools.pairwise(times)), end]
    segments = []
    for k, one in enumerate(found):
        label, probability = stream.labels[one.probabilities.argmax()], one.probabilities.max()
        if segments and segments[-1][2] == label:
            segments[-1][1] = edges[k + 1]
            segments[-1][3].append(probability)
        else:
            segments.append([edges[k], edges[k + 1], label, [probability]])
    return [(start, end, label, np.mean(all_of)) for start, end, label, all_of in segments]


def timeline(trained_run, *arguments):
    return call("predict", "--checkpoint", trained_run, "--timeline", *arguments)


@pytest.mark.usefixtures("shallow")
def test_a_video_is_labelled_over_time(trained_run, long_video, tmp_path):
    expected = segments_of(trained_run, clips.decode_all(long_video.read_bytes()), 0.0, 7.2)
    assert len(expected) > 1
    process = timeline(
        trained_run, long_video, "--every", "4", "--out", tmp_path / "o.csv", "--picture", tmp_path / "p.svg"
    )
    assert process.returncode == 0 and process.stdout == "", process.stderr
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [label for _, _, label, _ in expected]
    found = np.array([[float(row[key]) for key in ("start", "end", "probability")] for row in rows])
    np.testing.assert_allclose(found, [(a, b, p) for a, b, _, p in expected], atol=1e-3)
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1

    process = timeline(trained_run, long_video, "--every", "4", "--json")
    assert [entry["label"] for entry in json.loads(process.stdout)] == [row["label"] for row in rows]

    process = timeline(trained_run, long_video, "--every", "4", "--out", tmp_path / "o.vtt")
    head, *cues = (tmp_path / "o.vtt").read_text().split("\n\n")
    assert head == "WEBVTT" and len(cues) == len(rows)
    for cue, (start, end, label, probability) in zip(cues, expected, strict=True):
        times, text = cue.strip().split("\n")
        assert times == f"{clock(start)} --> {clock(end)}" and text == f"{label} {probability:.2f}"
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}", times)


@pytest.mark.usefixtures("shallow")
def test_a_part_of_a_video_is_labelled_by_its_times(trained_run, long_video):
    process = timeline(trained_run, long_video, "--start", "2", "--end", "5.2", "--every", "4", "--json")
    found = [tuple(entry.values()) for entry in json.loads(process.stdout)]
    expected = segments_of(trained_run, clips.decode_all(long_video.read_bytes())[50:130], 2.0, 5.2)
    assert [label for _, _, label, _ in found] == [label for _, _, label, _ in expected]
    for one, other in zip(found, expected, strict=True):
        assert (*one[:2], one[3]) == pytest.approx((*other[:2], other[3]), abs=1e-3)


@pytest.mark.usefixtures("shallow")
def test_a_video_shorter_than_a_window_has_its_last_frame_repeated(trained_run, tmp_path):
    short = tmp_path / "short.mp4"
    short.write_bytes(clips.encode(clips.moving_square(5)))
    (entry,) = json.loads(timeline(trained_run, short, "--json").stdout)
    frames = clips.decode_all(short.read_bytes())[[0, 2, 4, 4, 4, 4, 4, 4]]
    model = inti_jax.load(trained_run)
    assert entry["label"] == model.labels[model(frames).argmax()]
    assert (entry["start"], entry["end"]) == (0.0, 0.2)


def test_frames_are_decoded_once_and_not_kept(long_video):
    with sources.video(long_video) as frames:
        tracemalloc.start()
        times = [frame.seconds for frame in frames]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert times == pytest.approx(np.arange(180) / 25)
    assert peak < 2**20


@pytest.mark.parametrize("suffix", [".csv", ".json", ".vtt"])
def test_a_fault_leaves_an_older_file_or_a_whole_one(tmp_path, suffix):
    path, segments = (
        tmp_path / f"labels{suffix}",
        [Segment(0.0, 1.5, "a <&> b", 0.5), Segment(1.5, 2.0, "é", 1.0)],
    )
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), SegmentFile(path):
        raise ZeroDivisionError
    assert path.read_text() == "older"
    with SegmentFile(path):
        pass
    assert (
        path.read_text()
        == {".csv": "start,end,label,probability\n", ".json": "[]\n", ".vtt": "WEBVTT\n"}[suffix]
    )
    with pytest.raises(ZeroDivisionError), SegmentFile(path) as write:
        for segment in segments:
            write(segment)
        raise ZeroDivisionError
    text = path.read_text()
    if suffix == ".json":
        assert [Segment(**entry) for entry in json.loads(text)] == segments
    elif suffix == ".csv":
        assert [row[2] for row in csv.reader(text.splitlines()[1:])] == ["a <&> b", "é"]
    else:
        assert text.endswith(
            "\n00:00:00.000 --> 00:00:01.500\na &lt;&amp;&gt; b 0.50\n\n"
            "00:00:01.500 --> 00:00:02.000\né 1.00\n"
        )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--every", "4"), 2, "--every is of labels over time: give --timeline too"),
        (("--timeline", "--start", "-1"), 2, "--start is -1.0"),
        (("--timeline", "--start", "5", "--end", "4"), 2, "--end is 4.0: it should be behind the start, 5.0"),
        (("--timeline", "--threshold", "2"), 2, "--threshold is 2.0: it should be a probability"),
        (("--timeline", "--out", "x.txt"), 2, "should end in .csv or .json or .vtt"),
        (
            ("--timeline", "--picture", "x.gif"),
            2,
            "--picture x.gif: the file's name should end in .png or .svg",
        ),
        (("{}", "--timeline"), 2, "--timeline takes one video, not 2"),
        (("--timeline", "--start", "60"), 1, "has no frame from 60 s on"),
    ],
)
@pytest.mark.usefixtures("shallow")
def test_what_cannot_be_done_is_one_clear_line(trained_run, long_video, arguments, status, message):
    arguments = [each.format(long_video) for each in arguments]
    process = call("predict", "--checkpoint", trained_run, long_video, *arguments)
    assert process.returncode == status and process.stdout == ""
    assert message in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr
