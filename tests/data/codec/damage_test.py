"""Damage in the middle of a file is counted; packets that are empty, and a variable rate, are no damage."""

import dataclasses
import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from inti_jax.data import check, manifest
from inti_jax.data.codec import decode
from inti_jax.data.codec.reencode import reencode
from tests.commands import prepare
from tests.data import clips

SHARED = Path(__file__).parents[4] / "shared" / "faults"
FRAMES = 100
# Presentation times in frames: as if a recorder had left out what did not change.
UNEVEN = [0, 1, 2, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 45, 46, 47]


def _noisy() -> np.ndarray:
    frames = clips.moving_square(FRAMES, 96, 128).astype(int)
    noise = np.random.default_rng(0).integers(-20, 20, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


NOISY = _noisy()
WHOLE = {
    "h264 in MP4": clips.encode(NOISY),
    "h264 in Matroska": clips.encode(NOISY, container="matroska"),
    "h264 and sound in Matroska": clips.encode(NOISY, container="matroska", audio=True),
    "h264 in a transport stream": clips.encode(NOISY, container="mpegts"),
    "h264 in Flash": clips.encode(NOISY, container="flv"),
    "vp9 in WebM": clips.encode(NOISY, codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
    "vp8 in WebM": clips.encode(NOISY, codec="libvpx", container="webm", options={"cpu-used": "8"}),
    "mpeg4 in AVI": clips.encode(NOISY, codec="mpeg4", container="avi", b_frames=0),
}
UNANNOUNCED = [name for name in WHOLE if "MP4" not in name and "AVI" not in name]


def _hole(video: bytes, start: float, share: float) -> bytes:
    spoilt = bytearray(video)
    first, size = int(start * len(video)), int(share * len(video))
    spoilt[first : first + size] = bytes(size)
    return bytes(spoilt)


def _changed(video: bytes, seed: int) -> bytes:
    """Thirty bytes changed in the middle."""
    rng = np.random.default_rng(seed)
    spoilt = np.frombuffer(video, np.uint8).copy()
    spoilt[len(video) // 3 + rng.integers(len(video) // 3, size=30)] ^= 0x55
    return spoilt.tobytes()


def _flagged() -> tuple[bytes, int]:
    """A video that decodes to the end, of some frames of which FFmpeg says that they are damaged."""
    for seed in range(50):
        video = _changed(WHOLE["h264 in MP4"], seed)
        try:
            with av.open(io.BytesIO(video)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                count = sum(frame.is_corrupt for frame in container.decode(video=0))
        except av.FFmpegError:
            continue
        if count:
            return video, count
    raise AssertionError("FFmpeg has flagged nothing")


FLAGGED, COUNT = _flagged()


def test_frames_that_ffmpeg_flags_are_counted_and_rejected_beyond_a_share():
    info = decode.validate(FLAGGED)
    assert (info.frames, info.doubtful) == (FRAMES, COUNT)
    assert decode.validate(FLAGGED, COUNT / FRAMES) == info
    for most in (0.0, (COUNT - 1) / FRAMES):
        with pytest.raises(decode.DecodeError, match=f"damaged: {COUNT} of its {FRAMES} frames are doubtful"):
            decode.validate(FLAGGED, most)
        with pytest.raises(decode.DecodeError, match=f"damaged: {COUNT} of its {FRAMES} frames are doubtful"):
            reencode(FLAGGED, 48, most)


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_doubtful_of_what_is_whole(name):
    assert decode.validate(WHOLE[name], 0.0).doubtful == 0


@pytest.mark.parametrize("name", UNANNOUNCED)
@pytest.mark.parametrize("start", [0.3, 0.55, 0.93])
def test_frames_that_are_lost_in_a_hole_are_counted(name, start):
    video = _hole(WHOLE[name], start, 0.06)
    info = decode.validate(video)
    lost = FRAMES - info.frames
    assert lost > 0 and lost * 0.5 <= info.doubtful <= lost + 8  # those beside the hole may be damaged
    with pytest.raises(decode.DecodeError, match="are doubtful"):
        decode.validate(video, 0.0)


def test_a_hole_in_matroska_is_counted_to_the_frame():
    info = decode.validate(_hole(WHOLE["vp9 in WebM"], 0.45, 0.05))
    assert info.doubtful == FRAMES - info.frames > 0


def test_most_of_a_video_must_be_there():
    video = _hole(WHOLE["vp9 in WebM"], 0.2, 0.6)
    with pytest.raises(
        decode.DecodeError, match=r"damaged: (\d+) of its 100 frames are doubtful, \1 of them m"
    ):
        decode.validate(video)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("container", ["matroska", "mpegts", "flv", "mp4", "asf"])
def test_a_variable_rate_is_no_hole(container, sound):
    video = clips.encode(NOISY[:20], container=container, times=UNEVEN, audio=sound)
    assert decode.validate(video, 0.0).doubtful == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared files are not there")
@pytest.mark.parametrize(
    ("name", "frames", "doubtful"),
    [
        ("base.mp4", 50, 0),
        ("hflip.mp4", 50, 0),
        ("avi_skip.avi", 45, 0),
        ("six_30bytes.mp4", 150, 11),
        ("vp9_altref_zeros10pc.webm", 27, 23),
    ],
)
def test_shared_files(name, frames, doubtful):
    video = (SHARED / name).read_bytes()
    info = decode.validate(video)
    assert (info.frames, info.doubtful) == (frames, doubtful)
    assert reencode(video, 64)[1].doubtful == doubtful


# Packets that hold nothing.


def _with_empty_samples() -> bytes:
    """An MP4 file of intra frames, the sixth of which is empty: its bytes follow those of the fifth."""
    video = clips.encode(clips.numbered(20, 48, 64), codec="mpeg4", gop=1, b_frames=0)
    start = video.index(b"stsz") + 16
    sizes = list(struct.unpack_from(">20I", video, start))
    sizes[4], sizes[5] = sizes[4] + sizes[5], 0
    return video[:start] + struct.pack(">20I", *sizes) + video[start + 80 :]


def _ending_early() -> bytes:
    """An AVI file of two streams: the first ends with empty packets for as long as the other goes on."""
    longer, shorter = clips.moving_square(60, 32, 48), clips.numbered(20, 48, 64)
    streams = [(shorter, av.stream.Disposition.default), (longer, av.stream.Disposition.default)]
    return clips.several_streams(streams, container="avi", codec="mpeg4")


def _uneven_avi(codec: str) -> bytes:
    return clips.encode(clips.numbered(20, 48, 64), codec=codec, container="avi", b_frames=0, times=UNEVEN)


EMPTY = {codec: _uneven_avi(codec) for codec in ("mpeg4", "mjpeg", "libx264", "msmpeg4v2", "rawvideo")}
EMPTY["without an index"] = EMPTY["mpeg4"].replace(b"idx1", b"JUNK")
EMPTY["at the end"] = _ending_early()
EMPTY["in MP4"] = _with_empty_samples()


@pytest.mark.parametrize("name", EMPTY)
def test_a_packet_that_is_empty_is_no_frame_and_no_damage(name):
    video = EMPTY[name]
    numbers = [*range(5), *range(6, 20)] if name == "in MP4" else [*range(20)]
    count = len(numbers)
    info, frames = decode.decode_and_validate(video, lambda total: np.arange(total))
    assert (info.frames, info.doubtful) == (count, 0)
    assert info == decode.validate(video, 0.0)
    assert clips.numbers(np.stack([frames[index] for index in range(count)])) == numbers
    for total in (None, count):
        some = decode.decode_frames(video, np.array([count - 1, 3, 11]), total)
        assert clips.numbers(some) == [numbers[-1], numbers[3], numbers[11]]
    encoded, of_encoded = reencode(video, 48)
    assert clips.numbers(clips.decode_all(encoded)) == numbers
    assert of_encoded.fps == pytest.approx(info.fps, rel=1e-3)


def test_the_rate_is_that_of_the_frames_that_are_there():
    assert decode.validate(EMPTY["mpeg4"]).fps == pytest.approx(25 * 20 / 48)


@pytest.mark.parametrize("name", ["mpeg4", "mjpeg", "without an index", "at the end"])
def test_what_ends_early_is_truncated_though_packets_are_empty(name):
    video = EMPTY[name]
    with av.open(io.BytesIO(video)) as container:
        places = [packet.pos for packet in container.demux(container.streams.video[0]) if packet.size]
    for cut in (places[1], places[4] - 8, places[10] + 5, places[16] - 1, places[-1]):
        with pytest.raises(decode.DecodeError):
            decode.validate(video[:cut])


# Prepared.


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "videos"
    for split in ("train", "val"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "whole.mp4").write_bytes(
                clips.encode(clips.moving_square(9 + len(label)))
            )
    (root / "train" / "a" / "flagged.mp4").write_bytes(FLAGGED)
    return root


@pytest.mark.parametrize("how", [(), ("--short_side", "32")])
def test_the_manifest_counts_and_strict_rejects(how, source, tmp_path, capsys):
    where = ("--source", source, "--data_dir", tmp_path, *how)
    assert prepare("folder", *where, "--name", "all") == 0
    assert f"train: 3 videos, 0 rejected, 1 with doubtful frames ({COUNT} in all)" in capsys.readouterr().out
    directory = tmp_path / "all" / "1.0.0"
    counts = {video.id: video.doubtful for video in manifest.read(directory).splits["train"].videos}
    assert counts == {"train/a/flagged.mp4": COUNT, "train/a/whole.mp4": 0, "train/b/whole.mp4": 0}
    assert not list(check.differences(directory, decode_all=True))

    assert prepare("folder", *where, "--name", "strict", "--strict") == 0
    split = manifest.read(tmp_path / "strict" / "1.0.0").splits["train"]
    assert [video.id for video in split.videos] == ["train/a/whole.mp4", "train/b/whole.mp4"]
    (rejected,) = split.rejected
    assert rejected.source == "train/a/flagged.mp4"
    assert rejected.reason == f"it is damaged: {COUNT} of its {FRAMES} frames are doubtful"

    capsys.readouterr()
    assert prepare("folder", *where, "--name", "all", "--strict") == 1
    assert "--strict" in capsys.readouterr().err
    assert prepare("folder", *where, "--name", "strict", "--strict") == 0


def test_a_manifest_from_before_doubtful_frames_were_counted_is_read(source, tmp_path):
    assert prepare("folder", "--source", source, "--data_dir", tmp_path, "--name", "old") == 0
    path = tmp_path / "old" / "1.0.0" / manifest.FILE_NAME
    before = manifest.read(path.parent)
    raw = json.loads(path.read_text())
    del raw["checksum"]
    for split in raw["splits"].values():
        for video in split["videos"]:
            del video["doubtful"]
    path.write_text(json.dumps(raw | {"checksum": manifest.digest([raw])}))
    after = manifest.read(path.parent)
    assert after.sha256 == before.sha256
    uncounted = [dataclasses.replace(video, doubtful=0) for video in before.splits["train"].videos]
    assert [*after.splits["train"].videos] == uncounted
    assert not list(check.differences(path.parent, decode_all=True))
