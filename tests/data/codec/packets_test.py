"""Which packets are read and chosen: what is decoded from them is compared in decode_test.py."""

import io

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.data.codec import packets
from tests.data.codec.decode_test import FRAMES, FULL, VIDEOS

# No index of all packets, or keyframes that are no borders between what is presented before and after.
READ = {"open_gop", "intra_refresh", "hevc", "mpeg4_mp4", "vp9_mkv", "h264_mkv"}
UNTIMED = {"mpeg4_avi", "mpeg4_avi_b_frames", "h264_ts"}
INDEXED = sorted(VIDEOS.keys() - READ - UNTIMED)
WANTED = st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=6, unique=True).map(sorted)


def found(name, wanted, way):
    with av.open(io.BytesIO(VIDEOS[name])) as container:
        stream = container.streams.video[0]
        known = way(container, stream, wanted)
        needed = packets._choose(known, wanted, stream)
        return known.times, needed.indices, [[packet.pts for packet in run] for run in needed.runs]


@pytest.mark.parametrize("name", INDEXED)
@settings(max_examples=25, deadline=None)
@given(wanted=WANTED)
def test_the_index_says_what_reading_everything_says(name, wanted):
    times, *around = found(name, wanted, packets._read_around)
    all_times, *of_all = found(name, wanted, lambda *arguments: packets._read_all(*arguments[:2], FRAMES))
    assert around == of_all
    assert times.items() <= all_times.items()


@pytest.mark.parametrize("name", VIDEOS)
def test_where_the_index_cannot_be_trusted_everything_is_read(name, monkeypatch):
    ways = []
    for way in ("_read_around", "_read_all"):
        whole = getattr(packets, way)
        monkeypatch.setattr(packets, way, lambda *a, way=way, whole=whole: ways.append(way) or whole(*a))
    wanted = [0, 30, 44]
    with av.open(io.BytesIO(VIDEOS[name])) as container:
        packets.find_needed(container, container.streams.video[0], wanted, len(FULL[name]))
    assert bool(ways) == (name not in UNTIMED)
    assert ("_read_all" in ways) == (name in READ)


def test_no_more_is_read_than_needed(monkeypatch):
    read, whole = [], packets._Reader.read
    monkeypatch.setattr(packets._Reader, "read", lambda reader: read.append(reader) or whole(reader))
    for wanted, most in (([26], 6), ([2, 26], 12), ([49], 5)):  # keyframes at 0, 12, 24, 36, 48
        read.clear()
        found("b_frames", wanted, packets._read_around)
        assert len(read) <= most
