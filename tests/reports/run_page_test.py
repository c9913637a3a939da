"""The page of one run, from hostile and broken inputs."""

import dataclasses
import json
import re
import shutil

import numpy as np

from inti_jax.reports import writing
from inti_jax.runs import predictions
from inti_jax.runs.record import RunRecord
from tests.configs import INTI, tiny
from tests.reports import made_up


def page_of(workdir):
    writing.write([workdir], workdir, "a page", timed=False)
    return (workdir / "report.html").read_text()


def data_of(page, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)[1])


def test_the_page_has_a_chart_of_each_kind(tmp_path):
    page = page_of(made_up.run(tmp_path, settings=tiny("nowhere", **INTI, eval__clips=2)))
    charts = set(re.findall(r'id="chart-([a-z0-9-]+)" data-chart role="img" aria-label="[^"]{20,}"', page))
    assert charts == {
        "loss", "accuracy", "learning-rate", "gradient", "step-time", "throughput", "memory",
        "blends-1", "blends-far", "confusions", "classes", "reliability", "views", "cost",
    }  # fmt: skip
    assert set(data_of(page, "charts")["roots"].values()) == charts
    assert "Dashed: the run went on from step 2." in page
    assert "of frame 1 of 2: 0.900 ± 0.200 at step 4, from 0.600 ± 0.050 at step 1. The other frame" in page
    assert "after block 1: 40.0 % at step 4, from 10.0 % at step 1." in page
    assert len(page) < 2e6  # with one copy of the library, of 1.3 MB


def test_whatever_a_file_says_is_text(tmp_path):
    saved, views = made_up.predicted(videos=30, classes=3)
    bad = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "$$x$$ {{ 7 * 7 }} \u2028")
    saved = dataclasses.replace(saved, classes=bad, ids=tuple(f"</script>{name}" for name in saved.ids))
    page = page_of(made_up.run(tmp_path, found=(saved, views)))
    assert "<script>alert" not in page and "<img src=x" not in page and "</script>video" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    videos = data_of(page, "page-data")["videos"]
    assert tuple(videos["classes"]) == bad and tuple(videos["ids"]) == saved.ids
    # Bokeh would load a library to set these as a formula.
    ticks = re.findall(r'"major_label_overrides":(.*?\]\])', page)
    assert ticks and not any("$$" in tick for tick in ticks)


def test_predictions_of_another_dataset_are_left_out(tmp_path):
    workdir = made_up.run(tmp_path)
    saved, views = made_up.predicted(sha256="01234567 another")
    predictions.write(workdir, saved, views)
    (own,) = (path for path in (workdir / "predictions").iterdir() if "-raw-0.npz" in path.name)
    other = predictions.Place.of(4, saved.setting).path(workdir)
    shutil.move(other, own)
    page = page_of(workdir)
    assert "are of another dataset, motion_digits (01234567), and are left out." in page
    assert 'id="chart-loss"' in page and 'id="chart-confusions"' not in page


def test_damaged_predictions_are_a_line(tmp_path):
    workdir = made_up.run(tmp_path)
    (path,) = (workdir / "predictions").iterdir()
    path.write_bytes(path.read_bytes()[:-200])
    page = page_of(workdir)
    assert path.name in page and 'id="chart-loss"' in page and 'id="chart-confusions"' not in page


def test_without_the_dataset_the_videos_have_no_frames(tmp_path):
    page = page_of(made_up.run(tmp_path))
    assert "Frames are not shown: dataset `motion_digits` is not in nowhere" in page.replace("&#34;", '"')
    assert page.count('class="card"') == 36 and "<img" not in page.partition("<script>")[0]


def test_a_video_that_does_not_decode_is_a_line(trained_run, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    from inti_jax.data.codec.decode import DecodeError
    from inti_jax.data.dataset import VideoDataset

    read = VideoDataset.__getitem__

    def broken(self, index):
        if index == 3:
            raise DecodeError("record 3 cannot be read")
        return read(self, index)

    monkeypatch.setattr(VideoDataset, "__getitem__", broken)
    page = page_of(workdir)
    assert page.count("it does not decode: record 3 cannot be read") == 1
    assert page.count('class="strip" src="data:image/png;base64,') == 19


def test_videos_with_several_labels(tmp_path):
    saved, views = made_up.predicted(videos=30, classes=4)
    labels = np.random.default_rng(0).random((30, 4)) < 0.4
    saved = dataclasses.replace(saved, labels=labels)
    workdir = made_up.run(tmp_path, found=(saved, views))
    record = RunRecord.read(workdir)
    several = dataclasses.replace(record.config.train, loss="binary_cross_entropy")
    dataclasses.replace(record, config=dataclasses.replace(record.config, train=several)).write(workdir)
    page = page_of(workdir)
    assert 'id="chart-confusions"' not in page and "Average precision by class" in page
    assert "probability of yes" in page and "largest entropy" in page
