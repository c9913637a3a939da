"""A user's own files, of several codecs, sizes and rates, from preparation to labels."""

import json
from pathlib import Path

import pytest

from inti_jax.runs.writers.jsonl import read_metrics
from tests.commands import call

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
LABELS = {
    "mmaction2_demo.mp4": "arm wrestling",
    "mmaction2_test.mp4": "arm wrestling",
    "mmaction2_test.avi": "basketball",
    "ucf101_v_Basketball_g01_c01.avi": "basketball",
    "videoprism_drumming.mp4": "drumming",
}


@pytest.mark.usefixtures("shallow", "unreported")
@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"needs the real clips in {CLIPS}")
def test_prepare_train_and_predict_on_real_clips(tmp_path):
    rows = [f"{CLIPS / name},{label},{split}" for name, label in LABELS.items() for split in ("train", "val")]
    # The same file may not come twice: a link gives it a second path.
    table = ["path,label,split"]
    for row in rows:
        path, label, split = row.rsplit(",", 2)
        link = tmp_path / split / Path(path).name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
        table.append(f"{link},{label},{split}")
    broken = tmp_path / "train" / "broken.mp4"
    broken.write_bytes((CLIPS / "mmaction2_demo.mp4").read_bytes()[:100_000])
    table.append(f"{broken},drumming,train")
    source = tmp_path / "videos.csv"
    source.write_text("\n".join(table) + "\n")

    data_dir = tmp_path / "data"
    process = call("prepare", "folder", "--source", source, "--data_dir", data_dir, "--name", "clips")
    assert process.returncode == 0, process.stderr
    assert "train: 5 videos, 1 rejected" in process.stdout and "val: 5 videos, 0 rejected" in process.stdout

    workdir = tmp_path / "run"
    process = call(
        "main", "--config", "configs/quickstart.py", "--workdir", workdir, "--config.data.name=clips",
        f"--config.data.data_dir={data_dir}", "--config.data.sampling=uniform", "--config.train.steps=1",
        "--config.train.global_batch=8", "--config.eval.batch=8", "--config.eval.crops=3",
        "--config.train.log_every_steps=1",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    validation = read_metrics(workdir)[-1]
    assert validation["evaluated"] == 5 and validation["missing"] == 0 and validation["views"] == 3

    process = call("predict", "--checkpoint", workdir, "--json", *[CLIPS / name for name in LABELS])
    assert process.returncode == 0, process.stderr
    for result in json.loads(process.stdout):
        assert {entry["label"] for entry in result["predictions"]} == set(LABELS.values())
