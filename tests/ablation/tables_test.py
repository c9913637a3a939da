import resource
import signal

import pytest

from inti_jax import ablate
from inti_jax.ablation import tables
from inti_jax.ablation.cells import Cell, Job
from inti_jax.ablation.experiments import EXPERIMENTS
from inti_jax.errors import UsageError

DIGITS = EXPERIMENTS["motion_digits"]
BEGIN, END = "<!-- motion_digits: written by inti_jax.ablate -->", "<!-- motion_digits: end -->"


def cell(method, compression, right, fold=None, seed=0, steps=400, dataset="data"):
    """A cell with ten videos, of which the first `right` are classified correctly."""
    labels = {f"video {i}": ("up", "down")[i % 2] for i in range(10)}
    wrong = {"up": "down", "down": "up"}
    predicted = {
        video: label if i < right else wrong[label] for i, (video, label) in enumerate(labels.items())
    }
    job = Job(method, compression, fold, seed, steps)
    return Cell(job, "", dataset, 0.0643, 1.0, 468_874, labels, predicted)


CELLS = [
    cell("lora", "inti", 9),
    cell("full", "inti", 8, fold=1),
    cell("full", "none", 4, fold=1),
    cell("full", "none", 8, fold=2),
    cell("full", "none", 6, fold=1, seed=1),
]


def test_a_row_pools_folds_and_seeds():
    none, inti, lora = tables.rows(CELLS, DIGITS)
    assert (none.compression, inti.compression, lora.method) == ("none", "inti", "lora")
    # 4 videos of fold 1 are right with both seeds, 2 with one; 8 of fold 2.
    assert none.videos.sum() == 4 + 2 / 2 + 8
    assert none.by_seed == {0: 0.6, 1: 0.6}
    line = tables.table([none]).markdown.splitlines()[2]
    assert line.startswith("| full | none | 0.0643 | 100.0 % | 468,874 | 400 | 3 | 65.0 | ")
    assert line.endswith(" | 60.0, 60.0 |")


def test_differences_are_of_the_runs_that_both_rows_have():
    (line,) = tables.differences(tables.rows(CELLS, DIGITS)).markdown.splitlines()[2:]
    assert line.startswith("| full | inti | none | 1 | +40.0 | ") and " | 4, 0 | 0.125 |" in line


def test_rows_with_other_steps_stay_apart():
    found = tables.rows([*CELLS[2:4], cell("full", "none", 10, fold=1, steps=500)], DIGITS)
    assert [row.steps for row in found] == [400, 500]
    assert "| none, 500 steps | none, 400 steps | 1 | +60.0 |" in tables.differences(found).markdown


def test_runs_on_other_data_are_warned_of(caplog):
    tables.rows([*CELLS, cell("full", "drop", 3, fold=2, dataset="other")], DIGITS)
    assert caplog.messages == ["the table compares runs on different datasets of fold 2"]


def test_the_section_of_a_file_is_replaced_and_nothing_else(tmp_path):
    rows = tables.rows(CELLS, DIGITS)
    results = tmp_path / "docs.md"
    results.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # also when it is there already
        tables.write(rows, "motion_digits", tmp_path, results)
        text = results.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        both = (tables.table(rows), tables.differences(rows))
        assert [text.count(each.markdown) for each in both] == [1, 1]
    assert (tmp_path / "motion_digits.png").read_bytes() == (tmp_path / "pareto.png").read_bytes()


def test_a_full_disk_is_an_error_with_the_files_name_and_keeps_the_old_table(tmp_path):
    rows = tables.rows(CELLS, DIGITS)
    tables.write(rows, "motion_digits", tmp_path, None)
    before = (tmp_path / "ablation.md").read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            tables.write(rows, "motion_digits", tmp_path, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "ablation.md")
    assert (tmp_path / "ablation.md").read_bytes() == before


def test_a_file_without_the_section_is_refused(tmp_path):
    (tmp_path / "docs.md").write_text("nothing")
    with pytest.raises(UsageError, match="it should have the lines"):
        tables.write(tables.rows(CELLS, DIGITS), "motion_digits", tmp_path, tmp_path / "docs.md")
    assert (tmp_path / "docs.md").read_text() == "nothing"


@pytest.mark.parametrize("text", ["full,lorra", ""])
def test_an_unknown_name_lists_the_valid_ones(text):
    with pytest.raises(UsageError, match="is none of full, linear"):
        ablate._chosen("methods", text, DIGITS.methods)
