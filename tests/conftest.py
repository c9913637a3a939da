"""Before anything imports JAX: eight simulated devices, and shapes checked at every call."""

import gc
import logging
import os
import tempfile
from unittest import mock

from tests.processes import QUICK_TO_COMPILE
from tests.unreported import without_reports

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
)

# Models are compiled once for all tests and the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="inti-jax-compiled-"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import hypothesis
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("inti_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

# On a busy machine a quick example can take longer than Hypothesis gives it.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


# The modules stay to the end: to search them for garbage again and again took a tenth of the time of tests.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def project_logger():
    """As before any command set it up: commands are also called in this process."""
    logger = logging.getLogger("inti_jax")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def motion_data(tmp_path_factory):
    """Where a small motion_digits is prepared: 40 training and 20 validation videos."""
    from inti_jax.data.builders.motion_digits import MotionDigits

    data_dir = tmp_path_factory.mktemp("data")
    MotionDigits(data_dir=data_dir, movements={"train": 20, "val": 10}).build()
    return data_dir


@pytest.fixture(scope="session")
def trained_run(motion_data, tmp_path_factory):
    """A finished run of a few steps of a model as of `shallow`, evaluated on two clips; it has no report."""
    from inti_jax.config.backbones import BACKBONES
    from inti_jax.training import loop
    from tests.configs import INTI, SHALLOW, tiny

    workdir = tmp_path_factory.mktemp("runs") / "inti"
    with mock.patch.dict(BACKBONES, tiny=SHALLOW), without_reports():
        loop.train(tiny(motion_data, **INTI, eval__clips=2), workdir)
    return workdir


@pytest.fixture(scope="session")
def emulator():
    """A store that this process and those that it starts take for Cloud Storage."""
    from tests.stores.emulator import running

    with running() as emulator:
        os.environ.update(emulator.environment())
        yield emulator


@pytest.fixture
def bucket(emulator, tmp_path):
    """The URL of a directory of its own, in a store without faults."""
    from tests.stores.emulator import BUCKET, Faults

    emulator.faults = Faults()
    yield f"gs://{BUCKET}/{tmp_path.name}"
    emulator.faults = Faults()


@pytest.fixture(scope="module")
def shallow():
    """For the tests of a module, `tiny` is `tests.configs.SHALLOW`."""
    from inti_jax.config.backbones import BACKBONES
    from tests.configs import SHALLOW

    with mock.patch.dict(BACKBONES, tiny=SHALLOW):
        yield


@pytest.fixture(scope="module")
def unreported():
    """Train without the report, also in a module's fixtures; loop_test.py has runs that write one."""
    with without_reports():
        yield
