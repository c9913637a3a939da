"""A build that is stopped, wherever, and what the next one makes of it."""

import multiprocessing
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from inti_jax.data import manifest
from inti_jax.data.builders import base, folder, journal
from inti_jax.data.codec import decode, reencode
from inti_jax.errors import UserError
from tests.commands import prepare
from tests.data import clips

ROOT = Path(__file__).parents[3]
VIDEOS = 60
SHARD_BYTES = 12_000  # a handful of videos


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes of small videos, some of which are damaged."""
    root = tmp_path_factory.mktemp("source")
    for index in range(VIDEOS):
        path = root / "ab"[index % 2] / f"{index:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        damaged = index % 7 == 3
        path.write_bytes(b"damaged" if damaged else clips.encode(clips.moving_square(5 + index % 4, 40, 56)))
    return root


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> Path:
    """What a build gives that nothing disturbs, on one thread."""
    data_dir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
        assert prepare(*_arguments(source, data_dir, workers=1)) == 0
    return data_dir


def _arguments(source: Path, data_dir: Path, *, workers: int) -> list[str]:
    how = ["--workers", workers, "--short_side", 32]
    return [*map(str, ["folder", "--source", source, "--data_dir", data_dir, *how])]


def _prepare_slowly(arguments: list[str], begun: Path, errors: Path) -> None:
    """In a process of its own, with time to kill it: `begun` grows by a byte with each video."""
    sys.stderr = errors.open("a", buffering=1)
    base._SHARD_BYTES = SHARD_BYTES

    def slow(*args):
        with begun.open("a") as file:
            file.write(".")
        time.sleep(0.05)
        return reencode_at_once(*args)

    reencode_at_once, reencode.reencode = reencode.reencode, slow
    sys.exit(prepare(*arguments))


def _contents(data_dir: Path) -> dict[str, bytes]:
    files = (path for path in data_dir.rglob("*") if path.is_file())
    return {path.relative_to(data_dir).as_posix(): path.read_bytes() for path in files}


def test_the_shards_are_several_and_some_files_are_rejected(undisturbed):
    (directory,) = (undisturbed / "folder").iterdir()
    splits = manifest.read(directory).splits
    assert len(splits["train"].shards) > 8 and len(splits["val"].shards) > 1
    assert sum(len(split.rejected) for split in splits.values()) == 9


def test_killed_at_random_points_it_goes_on_and_gives_the_same_bytes(source, undisturbed, tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.data.builders.resumption_test"])
    data_dir, begun, errors = (tmp_path / name for name in ("data", "begun", "errors"))
    arguments = _arguments(source, data_dir, workers=2)
    partial = data_dir / "folder" / "1.0.0.partial"
    rng = random.Random(0)
    complete: dict[str, int] = {}  # shards that were complete when the process was killed, and their files
    for _ in range(5):
        begun.write_text("")
        process = processes.Process(target=_prepare_slowly, args=(arguments, begun, errors))
        process.start()
        videos = rng.randint(2, 9)
        while begun.stat().st_size < videos and process.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9
        found = {path.name: path.stat().st_ino for path in (partial / "dataset").glob("*-of-?????")}
        assert complete.items() <= found.items()  # none was written again
        complete = found
    assert complete
    process = processes.Process(target=_prepare_slowly, args=(arguments, begun, errors))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "shards are already written" in errors.read_text()
    final = data_dir / "folder" / "1.0.0"
    assert complete.items() <= {path.name: path.stat().st_ino for path in final.iterdir()}.items()
    assert _contents(data_dir) == _contents(undisturbed)


@pytest.mark.parametrize(
    ("owner", "step", "call"),
    [
        (reencode, "reencode", 1),
        (reencode, "reencode", 14),
        (journal.Journal, "note", 3),
        (journal, "file_sha256", 3),
        (journal.Path, "rename", 2),
        (base.VideoBuilder, "_describe", 1),
        (manifest.Manifest, "write", 1),
        (journal.Journal, "finish", 1),
        (journal.Journal, "discard", 1),
    ],
)
def test_stopped_at_any_step_it_goes_on_and_gives_the_same_bytes(
    owner, step, call, source, undisturbed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    arguments, calls = _arguments(source, tmp_path, workers=1), []
    with monkeypatch.context() as patched:
        original = getattr(owner, step)

        def stop(*args, **kwargs):
            calls.append(step)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        patched.setattr(owner, step, stop)
        assert prepare(*arguments) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert prepare(*arguments) == 0
    assert _contents(tmp_path) == _contents(undisturbed)


def _stopped(source, data_dir, monkeypatch) -> Path:
    """A build that was stopped when most of it was done; the directory of its shards."""
    with monkeypatch.context() as patched:
        patched.setattr(base.VideoBuilder, "_describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(*_arguments(source, data_dir, workers=2)) == 130
    return data_dir / "folder" / "1.0.0.partial" / "dataset"


def test_a_shard_that_was_damaged_meanwhile_is_written_again(source, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    shards = sorted(_stopped(source, tmp_path, monkeypatch).iterdir())
    spoilt = bytearray(shards[1].read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    shards[1].write_bytes(spoilt)
    shards[2].write_bytes(b"")
    shards[3].unlink()
    (shards[4].parent.parent / "journal" / f"{shards[4].name}.json").write_text("")
    (shards[5].parent / "left.writing").write_text("half")
    assert prepare(*_arguments(source, tmp_path, workers=2)) == 0
    assert _contents(tmp_path) == _contents(undisturbed)


def test_what_was_begun_with_something_else_is_kept_and_refused(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    shards = _stopped(source, tmp_path, monkeypatch)
    before = _contents(shards)
    capsys.readouterr()
    other = [*_arguments(source, tmp_path, workers=2)[:-1], "24"]
    assert prepare(*other) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.0.0.partial" in line and "--short_side" in line and "delete it" in line
    assert _contents(shards) == before
    assert prepare(*[*other, "--name", "other"]) == 0


def test_a_build_without_a_shard_gives_way_to_another(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(*_arguments(source, tmp_path, workers=2)) == 130
    assert prepare(*[*_arguments(source, tmp_path, workers=2)[:-1], "24"]) == 0


def test_two_builds_of_a_dataset_do_not_meet(tmp_path):
    begun = journal.Journal.beside(tmp_path / "1.0.0")
    with begun.opened({}, 1), pytest.raises(UserError, match="another process"), begun.opened({}, 1):
        pass
    with begun.opened({}, 1):
        pass


def test_a_source_without_videos_leaves_nothing_behind(tmp_path):
    (tmp_path / "source" / "a").mkdir(parents=True)
    bad = tmp_path / "source" / "a" / "0.mp4"
    bad.write_bytes(b"damaged")
    assert prepare(*_arguments(tmp_path / "source", tmp_path / "data", workers=1)) == 1
    bad.write_bytes(clips.encode(clips.moving_square(5)))
    assert prepare(*_arguments(tmp_path / "source", tmp_path / "data", workers=1)) == 0


@pytest.mark.parametrize("message", ["write() failed: No space left on device; writing x", "a bug"])
def test_a_full_disk_is_said_and_costs_nothing(message, source, undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    arguments = _arguments(source, tmp_path, workers=1)
    with monkeypatch.context() as patched:
        written, original = [], base._canonical

        def full(example):
            written.append(example)
            if len(written) > 10:
                raise RuntimeError(message)
            return original(example)

        patched.setattr(base, "_canonical", full)
        if message == "a bug":
            with pytest.raises(RuntimeError):
                prepare(*arguments)
        else:
            assert prepare(*arguments) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.endswith("cannot be written: No space left on device")
    assert prepare(*arguments) == 0
    assert _contents(tmp_path) == _contents(undisturbed)


def test_over_apache_beam_it_is_the_same_dataset(source, undisturbed, tmp_path, monkeypatch, capsys):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'inti_jax[beam]'")
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    arguments = [arg for arg in _arguments(source, tmp_path, workers=1) if arg not in ("--workers", "1")]
    flags = ["--beam_options", "direct_num_workers=2,direct_running_mode=multi_threading"]
    assert prepare(*[*arguments, "--beam_runner", "DirectRunner", *flags]) == 0
    assert _contents(tmp_path) == _contents(undisturbed)

    # It goes on where a build on one machine was stopped.
    shards = sorted(_stopped(source, tmp_path / "stopped", monkeypatch).iterdir())
    kept = shards[3].stat().st_ino
    shards[0].unlink()
    shards[-1].unlink()
    elsewhere = [*arguments, "--data_dir", str(tmp_path / "stopped"), "--beam_runner", "DirectRunner"]
    assert prepare(*elsewhere) == 0
    assert _contents(tmp_path / "stopped") == _contents(undisturbed)
    assert (tmp_path / "stopped" / "folder" / "1.0.0" / shards[3].name).stat().st_ino == kept

    for runner, options, status, reason in (
        ("Runner", "", 2, "--beam_runner Runner: Unexpected"),
        ("DataflowRunner", "region=x", 1, "Missing required option: project"),
    ):
        capsys.readouterr()
        chosen = ["--name", "other", "--beam_runner", runner, "--beam_options", options]
        assert prepare(*[*arguments, *chosen]) == status
        assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(find_spec("apache_beam") is not None, reason="Apache Beam is installed")
def test_without_apache_beam_it_is_asked_for(source, tmp_path, capsys):
    arguments = _arguments(source, tmp_path, workers=1)
    arguments = arguments[: arguments.index("--workers")]
    assert prepare(*[*arguments, "--beam_runner", "DirectRunner"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'inti_jax[beam]'" in line
    assert not any(tmp_path.iterdir())


def test_a_builder_reads_elsewhere_what_it_reads_here(source, tmp_path):
    program = """
import pickle, sys
check, clip = pickle.load(sys.stdin.buffer)
print(check(clip)[2])
"""
    import functools
    import pickle

    labels, splits, *_ = folder.scan(source)
    builder = folder.Folder(data_dir=tmp_path, name="folder", labels=labels, splits=splits)
    check, clip = functools.partial(base._check, builder.read, base.Options()), splits["train"][0]
    message = pickle.dumps((check, clip))
    assert len(message) < 1_000  # the clips of the dataset stay here
    there = subprocess.run(
        [sys.executable, "-c", program], input=message, capture_output=True, cwd=ROOT, check=True
    )
    assert there.stdout.decode().strip() == check(clip)[2]
    assert isinstance(check(clip)[1], decode.VideoInfo)
