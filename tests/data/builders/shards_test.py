import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.data import manifest
from inti_jax.data.builders import base, folder
from tests.benchmarks.prepare_memory import peak_memory
from tests.data import clips

SIZES = st.lists(st.one_of(st.integers(0, 2**12), st.integers(0, 2**36)), min_size=1, max_size=1500)


def _clips(sizes: list[int]) -> list[base.Clip]:
    return [base.Clip(str(index), "a", None, size) for index, size in enumerate(sizes)]


@settings(deadline=None)
@given(SIZES)
def test_every_clip_is_in_exactly_one_shard_and_no_shard_is_without(sizes):
    edges = base.shard_edges(_clips(sizes))
    assert edges[0] == 0 and edges[-1] == len(sizes)
    counts = [end - start for start, end in itertools.pairwise(edges)]
    assert min(counts) >= 1 and max(counts) - min(counts) <= 1
    assert len(counts) <= 512
    # Not more than needed: on the mean they are full, or there is one.
    assert len(counts) == 1 or sum(sizes) / len(counts) > 2**25


@settings(deadline=None)
@given(SIZES, st.randoms())
def test_shards_depend_on_the_sum_of_sizes_and_the_number_of_clips_alone(sizes, rng):
    shuffled = list(sizes)
    rng.shuffle(shuffled)
    assert base.shard_edges(_clips(shuffled)) == base.shard_edges(_clips(sizes))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for index in range(12):
        path = root / "ab"[index % 2] / f"{index}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(clips.encode(clips.moving_square(4 + index, 32, 48)))
    return root


@pytest.mark.parametrize("workers", [2, 7])
def test_the_files_do_not_depend_on_the_workers(workers, source, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_SHARD_BYTES", 8_000)
    built = []
    for count in (1, workers):
        labels, splits, *_ = folder.scan(source)
        data_dir = tmp_path / str(count)
        builder = folder.Folder(data_dir=data_dir, name="folder", labels=labels, splits=splits)
        built.append(builder.build(base.Options(workers=count)))
    one, many = ({path.name: path.read_bytes() for path in directory.iterdir()} for directory in built)
    assert one == many
    listed = manifest.read(built[0]).splits["train"]
    assert len(listed.shards) > 2
    assert sum(shard.count for shard in listed.shards) == listed.count
    for shard in listed.shards:
        assert manifest.file_sha256(built[0] / shard.file) == shard.sha256


def test_memory_grows_neither_with_the_files_nor_with_their_bytes():
    """Only the list of files does, by some kilobytes each: 54 MiB more with 20,000 than with 100."""
    few, many = peak_memory(50), peak_memory(1_000)
    assert many - few < 30
    # 12 MB in a shard, and 240 MB in four.
    small, large = peak_memory(8, 1_500_000), peak_memory(160, 1_500_000)
    assert large - small < 60
