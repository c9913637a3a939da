import json
import resource
import shutil
import signal

import pytest

from inti_jax import ablate
from inti_jax.config import load_config
from inti_jax.config.backbones import published
from inti_jax.errors import UsageError, UserError
from inti_jax.runs.layout import checkpoint_dir, metrics_path
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.training import ablation
from inti_jax.training.ablation import COMPRESSIONS, METHODS

CELLS = [
    ablation.Cell("full", "none", 0.0643, 468_874, {0: 0.401, 1: 0.378}),
    ablation.Cell("lora", "inti", 0.0433, 55_180, {0: 0.439}),
]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_cell_is_a_config(method, compression):
    spec = f"configs/ablation.py:{METHODS[method]},{COMPRESSIONS[compression]},seed=1,steps=7"
    settings = load_config(spec)
    assert settings.train.steps == 7 and settings.train.seed == 1
    assert settings.model.adaptation == method.partition("+")[0]
    assert settings.model.compression.kind == compression.partition("(")[0]


def test_the_table_has_means_and_ranges():
    _, _, first, second = ablation.table(CELLS).splitlines()
    assert first == "| full | none | 0.0643 | 468,874 | 2 | 39.0 | 37.8 to 40.1 |"
    assert second == "| lora | inti | 0.0433 | 55,180 | 1 | 43.9 |  |"


def test_the_section_of_a_file_is_replaced_and_nothing_else(tmp_path):
    results = tmp_path / "docs.md"
    results.write_text(f"before\n{ablation._BEGIN}\nold\n{ablation._END}\nafter\n")
    for _ in range(2):  # also when it is there already
        ablation.write(CELLS, tmp_path, results)
        text = results.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert text.count(ablation.table(CELLS)) == 1
    assert (tmp_path / "ablation.png").read_bytes() == (tmp_path / "pareto.png").read_bytes()
    assert json.loads((tmp_path / "ablation.json").read_text())[1]["method"] == "lora"


def test_a_full_disk_is_an_error_with_the_files_name_and_keeps_the_old_table(tmp_path):
    ablation.write(CELLS, tmp_path, None)
    before = (tmp_path / "ablation.json").read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            ablation.write(CELLS, tmp_path, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "ablation.json")
    assert (tmp_path / "ablation.json").read_bytes() == before


def test_a_file_without_the_section_is_refused(tmp_path):
    (tmp_path / "docs.md").write_text("nothing")
    with pytest.raises(UsageError, match="it should have the lines"):
        ablation.write(CELLS, tmp_path, tmp_path / "docs.md")
    assert (tmp_path / "docs.md").read_text() == "nothing"


def test_finished_runs_are_collected_by_their_names(tmp_path):
    spec = f"configs/ablation.py:{METHODS['aim']},{COMPRESSIONS['inti']}"
    for seed, top1 in ((0, 0.5), (1, 0.7)):
        workdir = tmp_path / ablation._run_name("aim", "inti", seed)
        labels = tuple(map(str, range(10)))
        dataset = Dataset("motion_digits", "1.0.0", "0", labels)
        own = ["--config.model.backbone=auto"] if seed else []  # the record says what that is
        RunRecord(load_config(f"{spec},seed={seed}", own), dataset, published("tiny")).write(workdir)
        of_400 = {"step": 400, "split": "val", "top1": top1, "views": 1, "clips": 1, "dataset": "0"}
        # What `main --mode eval` adds is not what the run came to.
        changes = ({"step": 200}, {"views": 3}, {"dataset": "1"}, {"weights": "ema"})
        others = [of_400 | change | {"top1": 0.1} for change in changes]
        lines = [json.dumps(entry) + "\n" for entry in (of_400, *others)]
        (workdir / "metrics.jsonl").write_text("".join(lines))
    unfinished = tmp_path / ablation._run_name("aim", "none", 0)
    unfinished.mkdir()
    shutil.copytree(workdir, tmp_path / f"{workdir.name}-copy")
    (cell,) = ablation.collect(tmp_path)
    assert (cell.method, cell.compression, cell.top1) == ("aim", "inti", {0: 0.5, 1: 0.7})
    assert cell.gmacs == pytest.approx(0.0609, abs=5e-5) and cell.trained == 100_588


def test_a_run_is_made_again_unless_it_evaluated_its_last_step_itself(tmp_path):
    """Here it cannot be: the dataset is not there."""
    overrides = {"model.pretrained": tmp_path / "absent", "data.data_dir": tmp_path, "eval.batch": 8}
    changes = [f"--config.{key}={value}" for key, value in overrides.items()]
    settings = load_config("configs/ablation.py:steps=7", changes)
    labels = tuple(map(str, range(10)))
    RunRecord(settings, Dataset("motion_digits", "1.0.0", "0", labels), published("tiny")).write(tmp_path)
    checkpoint_dir(tmp_path).mkdir()
    own = {"step": 7, "split": "val", "top1": 0.5, "views": 1, "clips": 1, "dataset": "0"}

    def train(spec="steps=7", **change):
        metrics_path(tmp_path).write_text(json.dumps(own | change) + "\n")
        ablation._train("ablation", spec, tmp_path, overrides)

    train()
    for change in ({"step": 6}, {"views": 3, "clips": 3}, {"dataset": "1"}):
        with pytest.raises(UserError, match="`motion_digits` is not in"):
            train(**change)
    with pytest.raises(UserError, match="checkpoints of another run"):
        train("steps=7,seed=1")


@pytest.mark.parametrize("text", ["full,lorra", ""])
def test_an_unknown_name_lists_the_valid_ones(text):
    with pytest.raises(UsageError, match="is none of full, linear"):
        ablate._chosen("methods", text, METHODS)
