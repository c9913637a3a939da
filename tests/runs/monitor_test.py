"""What a run says of itself while it runs: speed, compilations, what it keeps compiled, traces."""

import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from inti_jax import config
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UsageError
from inti_jax.runs import compilation, monitor, state, utilization
from inti_jax.runs.compilation import Compilations, cached
from inti_jax.runs.profiling import Steps
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.runs.writers.progress import Progress
from inti_jax.training import loop
from tests.commands import call
from tests.configs import INTI, record, tiny
from tests.main_test import CONFIG

pytestmark = pytest.mark.usefixtures("shallow", "unreported")

PEAK = 1e15


@pytest.fixture
def no_cache():
    """JAX as a user has it who set up no cache; quick compilations are kept, too."""
    before = jax.config.jax_compilation_cache_dir
    threshold = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def compilations():
    found = Compilations()
    yield found
    found.close()


def wave(x):
    return jnp.sin(x) * 3


def compile_anew():
    """As a process that starts."""
    jax.clear_caches()
    return jax.jit(wave)(jnp.arange(5.0))


@pytest.fixture(scope="module")
def watched(motion_data, tmp_path_factory):
    """A run on chips with a peak, of which two steps are traced, and its config."""
    workdir = tmp_path_factory.mktemp("watched")
    settings = tiny(motion_data, **INTI, train__log_every_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilization, "peak_flops", lambda devices: PEAK)
        loop.train(settings, workdir, Steps(2, 3))
    return workdir, settings


def records(workdir, split):
    return [each for each in read_metrics(workdir) if each["split"] == split]


def test_speed_and_utilisation_follow_from_the_step_time(watched):
    workdir, settings = watched
    macs = utilization.training_macs(state.abstract_model(record(settings)), config.Model(), 8)
    found = records(workdir, "train")
    assert [each["step"] for each in found] == [2, 4]
    for each in found:
        assert each["videos_per_second"] == pytest.approx(8 / each["step_seconds"])
        assert each["mfu"] == pytest.approx(2 * macs * 8 / each["step_seconds"] / PEAK)
        assert 0 <= each["data_wait"] <= 1
        assert "hbm_bytes" not in each


def test_the_weights_of_each_layer_have_their_curves(watched):
    workdir, _ = watched
    assert [(each["step"], each["block"]) for each in records(workdir, "blends")] == [(2, 1), (4, 1)]
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("events*"))
    assert b"blends_block_1/mean_1" in events and b"train/loss" in events


def test_where_no_peak_is_known_there_is_no_utilisation(trained_run):
    assert all("mfu" not in each and "videos_per_second" in each for each in records(trained_run, "train"))


def test_each_compilation_has_a_record(watched):
    workdir, _ = watched
    found = {each["what"]: each for each in records(workdir, "compile")}
    assert found["train_step"]["step"] == 1 and found["forward"]["step"] == 4
    assert all(each["seconds"] > 0 and each["cached"] in (True, False) for each in found.values())


def test_compiling_counts_in_no_step_time(motion_data, tmp_path):
    settings, seconds = tiny(motion_data), 0.5
    writer, dataset = MetricsWriter(tmp_path, settings), open_dataset("motion_digits", motion_data, "train")
    speed = monitor.Speed(settings, state.abstract_model(record(settings)), sharding.make_mesh(config.Mesh()))
    watch = monitor.Monitor(
        settings, dataset, writer, Progress("train", 4), speed, last_step=4, next_step=0, bad=0
    )
    figures = {name: jnp.zeros(()) for name in ("loss", "grad_norm", "bad", "top1")}

    @jax.jit
    def step_fn(before, batch):
        time.sleep(seconds)  # while it is traced, which is a part of compiling
        return dataclasses.replace(before, step=before.step + 1), figures

    train_state = state.TrainState(step=jnp.zeros((), int), trainable={}, frozen={}, opt_state=())
    for step in (1, 2):
        train_state, metrics = watch.dispatch(step, step_fn, train_state, {})
        watch.push(step, metrics, jnp.arange(8))
    watch.flush()
    watch.close()
    writer.close()
    (compiled,) = (each for each in records(tmp_path, "compile") if each["what"] == "step_fn")
    assert compiled["step"] == 1 and compiled["seconds"] >= seconds
    assert [each["step_seconds"] < seconds for each in records(tmp_path, "train")] == [True, True]


def test_a_trace_holds_the_steps_that_were_asked_for(watched):
    workdir, _ = watched
    (path,) = workdir.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert sorted(steps) == [2, 3]
    assert any("train_step" in event.name for event in events)


@pytest.mark.parametrize("text", ["10:15", "steps=15:10", "steps=0:3", "steps=3", "steps=a:b", ""])
def test_a_range_that_is_none_is_refused(text, capsys):
    with pytest.raises(UsageError, match="--profile"):
        Steps.parse(text)


def test_steps_that_the_run_does_not_take_are_refused(motion_data, trained_run, tmp_path):
    with pytest.raises(UsageError, match="trains steps 1 to 4"):
        loop.train(tiny(motion_data), tmp_path / "new", Steps(3, 5))
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="has trained all its 4 steps"):
        loop.train(tiny(motion_data, **INTI, eval__clips=2), trained_run, Steps(2, 3))


def test_evaluation_is_not_traced(tmp_path):
    result = call("main", "--config", CONFIG, "--workdir", tmp_path, "--mode=eval", "--profile=steps=1:2")
    assert result.returncode == 2 and "cannot be used with --mode eval" in result.stderr


@pytest.mark.parametrize("name", [b"run", b"run[1]\xff"])
def test_what_was_compiled_is_found_again(name, no_cache, compilations, tmp_path):
    workdir = tmp_path / os.fsdecode(name)

    def compiled():
        return [each.cached for each in compilations.take() if each.what == "wave"]

    with cached(workdir):
        expected = compile_anew()
        assert compiled() == [False]
        assert (compile_anew() == expected).all() and compiled() == [True]
    # A processor has its own directory, for another one may lack its instructions.
    (directory,) = (workdir / "compiled").iterdir()
    assert directory.name.startswith("cpu-") and any(directory.glob("*wave*"))
    compile_anew()  # outside, nothing is kept or found
    assert compiled() == [False]
    assert jax.config.jax_compilation_cache_dir is None


def test_commands_that_use_a_run_keep_programs_for_the_user(
    no_cache, compilations, tmp_path, monkeypatch, caplog
):
    most = jax.config.jax_compilation_cache_max_size
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        compilation.cache_for_user()
        assert jax.config.jax_compilation_cache_max_size > 0
        for found in (False, True):
            compile_anew()
            assert [each.cached for each in compilations.take() if each.what == "wave"] == [found]
        assert any((tmp_path / "inti_jax" / "compiled").glob("cpu-*/*wave*"))
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        compilation.cache_for_user()
        assert jax.config.jax_compilation_cache_dir is None
        assert "compiled programs are not kept for the next start: " in caplog.text
    finally:
        jax.config.update("jax_compilation_cache_max_size", most)
        compilation_cache.reset_cache()


def test_a_damaged_program_is_compiled_again(no_cache, compilations, tmp_path):
    with cached(tmp_path):
        expected = compile_anew()
        for path in tmp_path.glob("compiled/*/*wave*-cache"):
            path.write_bytes(path.read_bytes()[:20])
        compilations.take()
        with pytest.warns(UserWarning, match="persistent compilation cache"):
            assert (compile_anew() == expected).all()
        assert [each.cached for each in compilations.take() if each.what == "wave"] == [False]


def test_the_place_that_jax_was_given_wins(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with cached(tmp_path / "run"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_traced_parts_count_once(no_cache, compilations):
    inner = jax.jit(functools.partial(wave))

    @jax.jit
    def outer(x):
        return inner(x) + 1

    outer(jnp.arange(4.0))
    names = [each.what for each in compilations.take()]
    assert names.count("outer") == 1 and "wave" not in names


def test_closed_compilations_hear_no_more():
    found = Compilations()
    found.close()
    compile_anew()
    assert found.take() == []
