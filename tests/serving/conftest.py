"""A model that several services answer with, and a video."""

from unittest import mock

import pytest

from tests.data import clips


@pytest.fixture(scope="session")
def model(trained_run):
    from inti_jax.config.backbones import BACKBONES
    from inti_jax.evaluation.inference import FileModel
    from tests.configs import SHALLOW

    with mock.patch.dict(BACKBONES, tiny=SHALLOW):
        return FileModel(trained_run)


@pytest.fixture(scope="session")
def video():
    return clips.encode(clips.moving_square(40))
