import pytest

from inti_jax.ablation.experiments import EXPERIMENTS
from inti_jax.config import load_config, recipes
from inti_jax.errors import UsageError, UserError


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_is_a_config(name):
    experiment = EXPERIMENTS[name]
    fold = experiment.folds[-1] if experiment.folds else None
    for method in experiment.methods:
        for compression in experiment.compressions:
            spec = experiment.spec(method, compression, fold, 1, 7)
            settings = load_config(f"{recipes()[experiment.recipe]}:{spec}")
            assert settings.train.steps == 7 and settings.train.seed == 1
            assert settings.model.adaptation == method.partition("+")[0]
            assert settings.model.compression.kind == compression.partition("(")[0].partition(" ")[0]
            assert fold is None or settings.data.name == f"egogestar_fold{fold}"


def test_what_a_table_starts_from_is_asked_for(tmp_path):
    prepare = EXPERIMENTS["egogestar"].prepare
    with pytest.raises(UsageError, match="egogestar needs --pretrained"):
        prepare(tmp_path, tmp_path, (1,), None)
    with pytest.raises(UserError, match="no dataset `egogestar_fold2`: run `python -m inti_jax"):
        prepare(tmp_path, tmp_path, (2,), "backbone")
