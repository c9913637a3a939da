"""The choice of what a step computes again, by the memory that devices say they have."""

import jax
import pytest

from inti_jax.config import Mesh
from inti_jax.distributed import sharding
from inti_jax.runs.compilation import peak_bytes
from inti_jax.training import memory, train_step
from tests.configs import record, tiny


@pytest.mark.usefixtures("shallow")
def test_blocks_are_computed_again_where_devices_say_that_memory_is_short(monkeypatch):
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    run = record(tiny(model__remat="auto"))
    peak = peak_bytes(train_step.lower_step(memory.with_remat(run, False), mesh)[1].compile())
    assert peak
    for limit, again in ((None, False), (peak, False), (peak - 1, True)):
        monkeypatch.setattr(memory, "_limit", lambda mesh, limit=limit: limit)
        assert memory.settle(run, mesh).config.model.remat is again


@pytest.mark.parametrize("asked", [False, True])
def test_what_was_asked_for_stays(asked):
    run = record(tiny(model__remat=asked))
    assert memory.settle(run, sharding.make_mesh(Mesh(), jax.devices()[:1])) is run
