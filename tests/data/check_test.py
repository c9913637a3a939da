import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from inti_jax.data import check, manifest
from inti_jax.data.builders import base, folder
from inti_jax.data.codec import decode
from inti_jax.errors import UserError
from tests.commands import prepare
from tests.data import clips


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A dataset of several shards."""
    root = tmp_path_factory.mktemp("prepared")
    for index in range(10):
        path = root / "source" / "ab"[index % 2] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clips.encode(clips.moving_square(4 + index, 32, 48), fps=30))
    labels, splits, *_ = folder.scan(root / "source")
    builder = folder.Folder(data_dir=root / "data", name="folder", labels=labels, splits=splits)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "_SHARD_BYTES", 8_000)
        return builder.build()


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "1.0.0"))


def _run(*args) -> tuple[int, list[str], list[str]]:
    """The command's exit status, and its lines on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = prepare(*args)
    return status, out.getvalue().splitlines(), err.getvalue().splitlines()


def _shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("folder-train*"))


@pytest.mark.parametrize("options", [(), ("--decode",), ("--workers", "3", "--decode")])
def test_a_dataset_that_nothing_happened_to(options, prepared):
    status, out, _ = _run("--check", prepared, *options)
    assert status == 0
    assert out == [f"{prepared} matches its manifest, sha256 {manifest.read(prepared).sha256[:16]}"]


def test_a_byte_that_was_flipped_anywhere(prepared, copy):
    """In every file, and in a record, the command names the file and fails."""
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            spoilt = bytearray(content)
            spoilt[place] ^= 4
            path.write_bytes(spoilt)
            status, out, err = _run("--check", copy)
            assert status == 1, (path.name, place)
            assert any(path.name in line for line in [*out, *err]), (path.name, place)
            assert err[-1].startswith("error: ") and "Traceback" not in "".join(err)
        path.write_bytes(content)
    assert _run("--check", copy)[0] == 0


def test_a_split_of_another_name(copy):
    path = copy / "dataset_info.json"
    path.write_text(path.read_text().replace('"train"', '"traij"'))
    status, out, err = _run("--check", copy)
    assert status == 1 and err[-1].endswith("differences: 2")
    assert out[0].startswith("dataset_info.json was changed")
    assert (
        out[1].startswith("TFDS's metadata cannot be read, so no record was checked: ")
        and "'train'" in out[1]
    )


def test_a_flipped_byte_of_a_video_names_its_record(copy):
    listed = manifest.read(copy).splits["train"]
    shard = copy / listed.shards[1].file
    content = bytearray(shard.read_bytes())
    content[200] ^= 1  # the first record follows a header of 104 bytes
    shard.write_bytes(content)
    found = list(check.differences(copy))
    first = listed.videos[listed.shards[0].count]
    assert found[0].startswith(f"{shard.name} was changed")
    assert len(found) == 2 and f"record 0 ({first.id}) cannot be read" in found[1]


def test_shards_that_are_missing_cut_or_exchanged(copy):
    first, second, third, *_ = _shards(copy)
    first.unlink()
    second.write_bytes(b"")
    content = third.read_bytes()
    next(copy.glob("folder-val*")).write_bytes(content)
    status, out, err = _run("--check", copy, "--decode")
    assert status == 1 and err[-1].endswith(f"differences: {len(out)}")
    assert f"{first.name} is missing" in out
    assert any(line.startswith(f"{second.name} was changed") for line in out)
    assert any(line.startswith(f"{second.name} has 0 records") for line in out)
    assert any("folder-val" in line and "`id` is" in line for line in out)
    assert any("folder-val" in line and "`sha256` is" in line for line in out)
    assert not any(third.name in line for line in out)


@pytest.mark.parametrize(
    "change",
    [
        lambda listed: listed["splits"]["train"]["videos"][0].update(frames=99),
        lambda listed: listed["splits"]["train"]["videos"].pop(),
        lambda listed: listed["splits"]["val"]["shards"][0].update(count=7),
        lambda listed: listed["labels"].reverse(),
        lambda listed: listed.update(source="other"),
    ],
)
def test_a_manifest_that_was_changed(change, copy):
    path = copy / "manifest.json"
    listed = json.loads(path.read_text())
    change(listed)
    path.write_text(json.dumps(listed))
    status, out, err = _run("--check", copy)
    assert status == 1 and not out
    assert len(err) == 1 and "was changed" in err[0]
    with pytest.raises(UserError, match="was changed"):
        manifest.read(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", "a"), ("frames", 99), ("fps", 1.0), ("width", 2), ("bytes", 3), ("sha256", "00"), ("id", "x")],
)
def test_records_are_compared_with_a_manifest_that_hashes_to_what_it_says(field, value, copy):
    """Of a dataset from before checksums and lists of shards, too."""
    contents = manifest.read(copy)
    videos = list(contents.splits["train"].videos)
    index = next(i for i, entry in enumerate(videos) if getattr(entry, field) != value)
    videos[index] = manifest.Video(**{**vars(videos[index]), field: value})
    splits = contents.splits | {"train": manifest.Split.of(videos, ())}
    manifest.Manifest.of("folder", "1.0.0", contents.labels, splits, "").write(copy)
    found = list(check.differences(copy))
    assert len(found) == 1 and f"`{field}` is" in found[0] and videos[index].id in found[0]


def test_decoding_is_only_done_when_it_is_asked_for(copy, monkeypatch):
    def refuse(_, most_doubtful):
        raise decode.DecodeError("it does not decode")

    monkeypatch.setattr(decode, "validate", refuse)
    assert not list(check.differences(copy))
    found = list(check.differences(copy, decode_all=True))
    assert len(found) == 10 and all(line.endswith("it does not decode") for line in found)


@pytest.mark.parametrize(
    ("args", "status", "reason"),
    [
        (("--check", "nowhere"), 1, "cannot be read"),
        (("--check", "d", "--source", "s"), 2, "not source"),
        (("motion_digits", "--check", "d"), 2, "not dataset"),
        (("motion_digits", "--data_dir", "d", "--decode"), 2, "--decode needs --check"),
        (("motion_digits", "--data_dir", "d", "--short_side", "32"), 2, "--short_side"),
        (("folder", "--source", "s", "--data_dir", "d", "--short_side", "15"), 2, "even number"),
        (("folder", "--source", "s", "--data_dir", "d", "--workers", "0"), 2, "at least 1"),
        (("folder", "--source", "s", "--data_dir", "d", "--beam_options", "a=b"), 2, "needs --beam_runner"),
        (
            ("folder", "--source", "s", "--data_dir", "d", "--beam_runner", "X", "--workers", "2"),
            2,
            "does not apply",
        ),
        ((), 2, "give NAME"),
    ],
)
def test_wrong_usage(args, status, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = _run(*args)
    assert found == status and reason in err[-1]
    assert not any(tmp_path.iterdir())
