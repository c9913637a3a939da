import dataclasses

import pytest

from inti_jax.ablation import cells
from inti_jax.ablation.cells import Cell, Job
from inti_jax.ablation.experiments import EXPERIMENTS
from inti_jax.errors import UserError
from inti_jax.host import mirrors, stores

GESTURES = EXPERIMENTS["egogestar"]
JOB = Job("aim", "inti", None, 0, 7)
CELL = Cell(
    JOB, "of the config", "of the data", 0.06, 0.65, 1000, {"a": "up", "b": "down"}, {"a": "up", "b": "up"}
)


def test_the_most_important_cells_come_first_and_seed_by_seed():
    wanted = cells.jobs(GESTURES, ["full", "st_adapter"], ["none", "tome", "inti"], [1, 2], [0, 1], 9)
    assert len(wanted) == len(set(wanted)) == 24
    first = [
        Job("st_adapter", name, fold, seed, 9)
        for seed in (0, 1)
        for fold in (1, 2)
        for name in ("none", "inti")
    ]
    assert wanted[:8] == first
    assert [job.seed for job in wanted[8:]] == [0] * 8 + [1] * 8


def test_equal_compute_gives_compressed_models_more_steps():
    plain, compressed = cells.jobs(GESTURES, ["lora"], ["none", "drop"], [1], [0], 100, equal_compute=True)
    # After 3 of 12 blocks drop leaves 3/12 + 9/12 / 2 of the blocks' cost.
    assert plain.steps == 100 and compressed.steps == pytest.approx(100 / 0.625, abs=2)


def test_fewer_frames_cost_a_share_of_the_row_without_compression():
    whole, half = (cells._plan(GESTURES, "st_adapter", name) for name in ("none", "none with 4 frames"))
    assert half.gmacs_per_view / whole.gmacs_per_view == pytest.approx(0.5, abs=1e-3)


def test_cells_are_read_as_they_were_written_without_a_line_that_a_kill_cut(tmp_path):
    assert cells.read(tmp_path) == []
    other = dataclasses.replace(CELL, job=dataclasses.replace(JOB, fold=2))
    cells._write(tmp_path, [CELL, other])
    with cells.cells_path(tmp_path).open("a") as file:
        file.write('{"job": {"method')
    assert cells.read(tmp_path) == [CELL, other]
    assert CELL.top1 == 0.5 and CELL.correct == {"a": True, "b": False}


def test_a_line_that_is_no_cell_is_named(tmp_path):
    cells._write(tmp_path, [CELL])
    path = cells.cells_path(tmp_path)
    path.write_text(path.read_text() + '{"job": 3}\n')
    with pytest.raises(UserError, match=r"cells\.jsonl: line 2 is no cell"):
        cells.read(tmp_path)


def test_finished_cells_are_not_trained_again_and_those_of_other_settings_are_refused(tmp_path, monkeypatch):
    """Trains nothing: the runs are what `_train` would return."""
    trained = []

    def train(experiment, job, settings, workdir):
        trained.append(job)
        return dataclasses.replace(CELL, job=job, config=cells._hash(settings))

    monkeypatch.setattr(cells, "_train", train)
    digits = EXPERIMENTS["motion_digits"]
    jobs = [JOB, dataclasses.replace(JOB, compression="mean")]
    for data_dir in ("here", "moved"):  # where the files are is no other setting
        cells.train_all(digits, jobs, "backbone", tmp_path / data_dir, tmp_path)
    assert trained == jobs
    other = dataclasses.replace(cells.read(tmp_path)[0], config="of an earlier recipe")
    cells._write(tmp_path, [other])
    with pytest.raises(UserError, match="the line of aim-inti-seed0-7 is of other settings"):
        cells.train_all(digits, jobs, "backbone", tmp_path, tmp_path)


def test_a_table_in_a_bucket_goes_on_on_another_machine(bucket, monkeypatch):
    """Trains nothing, as above."""
    trained = []

    def train(experiment, job, settings, workdir):
        trained.append((settings.data.data_dir, settings.model.pretrained, stores.origin(workdir)))
        return dataclasses.replace(CELL, job=job, config=cells._hash(settings))

    monkeypatch.setattr(cells, "_train", train)
    weights, url = f"{bucket}/b.safetensors", f"{bucket}/table"
    jobs = [JOB, dataclasses.replace(JOB, compression="mean")]
    for count in (1, 2):
        out = mirrors.mirror(url)  # as another machine has it
        with mirrors.pushed(out):
            cells.train_all(EXPERIMENTS["motion_digits"], jobs[:count], weights, f"{bucket}/data", out)
    assert trained == [(f"{bucket}/data", weights, f"{url}/{job.run_name}") for job in jobs]
    assert [cell.job for cell in cells.read(mirrors.mirror(url))] == jobs
