import json

import pytest

from inti_jax import bench as command
from inti_jax.config import Data
from inti_jax.data import throughput
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UsageError, UserError

ARGUMENTS = ["bench", "--name", "motion_digits", "--clips", "8"]


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """So that no worker processes are started."""
    monkeypatch.setattr("inti_jax.host.limits.cores", lambda: 1)


def test_figures_as_json_and_as_text(motion_data, monkeypatch, capsys):
    arguments = [*ARGUMENTS, "--data_dir", str(motion_data), "--config", "configs/quickstart.py"]
    monkeypatch.setattr("sys.argv", [*arguments, "--config.train.global_batch=4", "--json"])
    command.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["bad"], found["batch"], found["cores"]) == (8, 0, 4, 1)
    assert found["read_from"] == f"{motion_data}/motion_digits/1.0.0" and "cache" not in found
    assert set(found["shares"]) == {"read", "decode", "augment", "transfer"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["clips_per_second_per_core"] == pytest.approx(1 / sum(found["seconds"].values()))
    assert [(rate["workers"], rate["threads"]) for rate in found["rates"]] == [(0, 1)]
    assert found["batches_per_second"] == pytest.approx(found["rates"][0]["clips_per_second"] / 4)

    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    text = capsys.readouterr().out
    assert "0 of 8 bad" in text and "recommended: data.workers=0 data.threads=1" in text
    assert "batches of 32 a second" in text


def test_the_fewest_processes_of_those_as_fast_are_recommended():
    rates = [throughput.Rate(2, 1, 101.0), throughput.Rate(0, 2, 100.0), throughput.Rate(0, 1, 60.0)]
    found = throughput.Bench("data", 8, 0, 4, 2, dict.fromkeys(throughput.STAGES, 0.001), rates)
    assert found.recommended == throughput.Rate(0, 2, 100.0)
    assert found.batches_per_second == 25
    assert found.clips_per_second_per_core == pytest.approx(250)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--config.data.stride=2"], "give --config too"), (["--clips", "0"], "at least 1")],
)
def test_wrong_usage(motion_data, monkeypatch, arguments, reason):
    monkeypatch.setattr("sys.argv", [*ARGUMENTS, "--data_dir", str(motion_data), *arguments])
    with pytest.raises(UsageError, match=reason):
        command.main()


def test_a_dataset_of_which_nothing_decodes(motion_data):
    def broken(video, indices, total=None):
        raise throughput.decode.DecodeError("no frame")

    dataset = open_dataset("motion_digits", motion_data, "train", broken)
    with pytest.raises(UserError, match="none of the 4 clips"):
        throughput.measure(dataset, Data(name="x", data_dir="x"), batch=4, clips=4)
