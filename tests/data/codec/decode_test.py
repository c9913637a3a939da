import io
import os
import shutil
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inti_jax.data.codec import decode
from tests.data import clips

FRAMES = 50
SHARED = Path(__file__).parents[4] / "shared" / "videos"


def _videos() -> dict[str, bytes]:
    frames = clips.moving_square(FRAMES)
    uneven = np.cumsum(np.random.default_rng(0).integers(1, 6, FRAMES)).tolist()
    return {
        "b_frames": clips.encode(frames),
        "open_gop": clips.encode(
            frames, options={"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
        ),
        "b_pyramid": clips.encode(
            frames, options={"x264-params": "b-pyramid=normal:keyint=12:bframes=5:b-adapt=0"}
        ),
        "one_gop": clips.encode(frames, gop=250),
        "one_gop_pyramid": clips.encode(frames, options={"x264-params": "bframes=8:b-adapt=0:ref=5"}),
        "slices": clips.encode(frames, options={"x264-params": "slices=3:keyint=12:bframes=3"}),
        "interlaced": clips.encode(frames, options={"x264-params": "tff=1:keyint=15:bframes=3"}),
        # Its keyframes are pictures from which the next ones recover little by little.
        "intra_refresh": clips.encode(frames, options={"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
        "all_intra": clips.encode(frames, gop=1, b_frames=0),
        "variable_rate": clips.encode(frames, times=uneven),
        "late_start": clips.encode(frames, times=[t + 40 for t in range(FRAMES)]),
        "mpeg4_avi": clips.encode(frames, codec="mpeg4", container="avi", b_frames=0),
        "mpeg4_avi_b_frames": clips.encode(frames, codec="mpeg4", container="avi"),
        "mpeg4_mp4": clips.encode(frames, codec="mpeg4"),
        "hevc": clips.encode(
            frames, codec="libx265", options={"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=none"}
        ),
        "vp9_mkv": clips.encode(
            frames, codec="libvpx-vp9", container="matroska", gop=15, options={"cpu-used": "8"}
        ),
        "av1": clips.encode(frames, codec="libsvtav1", gop=16, options={"preset": "12"}),
        "h264_mkv": clips.encode(frames, container="matroska"),
        "h264_ts": clips.encode(frames, container="mpegts"),
        "fragmented": clips.encode(frames, muxer={"movflags": "frag_keyframe+empty_moov"}),
        "with_sound": clips.encode(frames, audio=True),
    }


VIDEOS = _videos()
FULL = {name: clips.decode_all(video) for name, video in VIDEOS.items()}


def test_encoding_leaves_the_priority_as_it_was():
    """Real-time tests would starve the processes that they wait for."""
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize("name", VIDEOS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_frames_are_those_of_the_full_decode(name, data):
    full = FULL[name]
    indices = np.array(data.draw(st.lists(st.integers(0, len(full) - 1), min_size=1, max_size=6)))
    expected = full[indices]
    np.testing.assert_array_equal(decode.decode_frames(VIDEOS[name], indices), expected)
    np.testing.assert_array_equal(decode.decode_frames(VIDEOS[name], indices, len(full)), expected)


@pytest.mark.parametrize("name", ["b_frames", "variable_rate", "late_start", "h264_mkv", "with_sound"])
def test_jumps_over_what_no_wanted_frame_depends_on(name):
    video = clips.damaged(VIDEOS[name], range(1, 12))  # the rest of the first group of pictures
    with pytest.raises(decode.DecodeError):
        decode.decode_frames(video, np.array([30]))
    for indices in ([13], [30], [49], [14, 25, 47], [40, 20]):
        frames = decode.decode_frames(video, np.array(indices), FRAMES)
        np.testing.assert_array_equal(frames, FULL[name][indices])


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_passes_over_what_no_wanted_frame_depends_on(container):
    video = clips.encode(
        clips.moving_square(FRAMES),
        container=container,
        options={"x264-params": "keyint=250:bframes=3:b-adapt=0:b-pyramid=none:scenecut=0"},
    )
    full = clips.decode_all(video)
    with av.open(io.BytesIO(video)) as file:
        types = [frame.pict_type for frame in file.decode(video=0)]
    with av.open(io.BytesIO(video)) as file:
        times = [packet.pts for packet in file.demux(video=0) if packet.size]
    packets = np.argsort(np.argsort(times))  # in decoding order, the index of each one's frame
    b_frames = {index for index, kind in enumerate(types) if kind == PictureType.B}
    assert len(b_frames) > FRAMES / 2
    for wanted in ([0], [13], [30, 31, 49], [5, 21, 37]):
        needless = [n for n, index in enumerate(packets) if index in b_frames - set(wanted)]
        spoilt = clips.damaged(video, needless, keep=5)  # the header says that they are needless
        with pytest.raises(decode.DecodeError):
            decode.decode_frames(spoilt, np.array([45]))
        frames = decode.decode_frames(spoilt, np.array(wanted), FRAMES)
        np.testing.assert_array_equal(frames, full[wanted])


@pytest.mark.parametrize(
    "other",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["a list of files", "a session description"],
)
def test_nothing_but_the_bytes_is_read(other, tmp_path, monkeypatch):
    (tmp_path / "secret.mp4").write_bytes(VIDEOS["b_frames"])
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(decode.DecodeError):
        decode.validate(other.encode())
    assert time.monotonic() - started < 5  # a session description's host would be waited for


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared clips are not there")
@pytest.mark.parametrize("name", ["mmaction2_demo.mp4", "mmaction2_test.avi", "videoprism_drumming.mp4"])
def test_real_clips(name):
    video = (SHARED / name).read_bytes()
    full = clips.decode_all(video)
    rng = np.random.default_rng(0)
    for _ in range(5):
        indices = rng.integers(len(full), size=4)
        np.testing.assert_array_equal(decode.decode_frames(video, indices, len(full)), full[indices])


@pytest.mark.parametrize("name", VIDEOS)
def test_validate_describes_the_video(name):
    info = decode.validate(VIDEOS[name])
    assert (info.frames, info.height, info.width) == (len(FULL[name]), 48, 64)
    assert info.doubtful == 0
    if name != "variable_rate":
        assert info.fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("name", VIDEOS)
def test_one_pass_validates_and_gives_the_chosen_frames(name):
    info, frames = decode.decode_and_validate(
        VIDEOS[name], lambda total: np.array([0, total // 3, total - 1])
    )
    assert info == decode.validate(VIDEOS[name])
    assert frames.keys() == {0, info.frames // 3, info.frames - 1}
    for index, frame in frames.items():
        np.testing.assert_array_equal(frame, FULL[name][index])


def test_a_second_pass_where_a_packet_gives_no_frame(monkeypatch):
    passes = []
    decode_whole = decode._decode_whole
    monkeypatch.setattr(decode, "_decode_whole", lambda *args: passes.append(args) or decode_whole(*args))
    hidden = clips.encode(clips.moving_square(FRAMES), times=[t - 10 for t in range(FRAMES)])  # before time 0
    for video, count in ((VIDEOS["b_frames"], 1), (hidden, 2)):
        passes.clear()
        full = clips.decode_all(video)
        info, frames = decode.decode_and_validate(video, lambda total: np.array([total - 1]))
        assert info.frames == len(full) and len(passes) == count
        np.testing.assert_array_equal(frames[len(full) - 1], full[-1])


def test_a_wrong_total_is_not_trusted():
    frames = decode.decode_frames(VIDEOS["b_frames"], np.array([30]), FRAMES + 7)
    np.testing.assert_array_equal(frames[0], FULL["b_frames"][30])


def test_odd_sizes():
    # mjpeg takes odd sizes with 4:2:0 chroma, which x264 refuses.
    video = clips.encode(clips.moving_square(9, 45, 61), codec="mjpeg", container="avi", b_frames=0)
    assert decode.validate(video).height == 45
    assert decode.decode_frames(video, np.array([8])).shape == (1, 45, 61, 3)


_DEFAULT = av.stream.Disposition.default
_COVER = av.stream.Disposition.attached_pic
_OTHER = av.stream.Disposition.original
SMALL, LARGE = clips.moving_square(12, 32, 48), clips.moving_square(12, 64, 96)
# Streams by size and disposition, and the place of the one to decode.
STREAMS = {
    "a small one before the default": ("matroska", [(SMALL, _OTHER), (LARGE, _DEFAULT)], 1),
    "a large one before the default": ("matroska", [(LARGE, _OTHER), (SMALL, _DEFAULT)], 1),
    "all default": ("matroska", [(SMALL, _DEFAULT), (LARGE, _DEFAULT)], 1),
    "none default": ("matroska", [(SMALL, _OTHER), (LARGE, _OTHER)], 1),
    "nothing else between them": ("mpegts", [(SMALL, _OTHER), (255 - SMALL, _OTHER)], 0),
    "a small one first in MP4": ("mp4", [(SMALL, _OTHER), (LARGE, _DEFAULT)], 1),
    "a cover that is larger": ("mp4", [(LARGE[:1], _COVER), (SMALL, _DEFAULT)], 1),
    "a small one first in AVI": ("avi", [(SMALL, _OTHER), (LARGE, _OTHER)], 1),
}


@pytest.mark.parametrize("name", STREAMS)
def test_of_several_streams_the_one_is_decoded_that_ffmpeg_takes(name):
    container, streams, chosen = STREAMS[name]
    video = clips.several_streams(streams, container=container)
    shown = streams[chosen][0]
    info, frames = decode.decode_and_validate(video, lambda total: np.arange(total))
    assert (info.frames, info.height, info.width) == shown.shape[:3]
    full = np.stack([frames[index] for index in range(len(shown))])
    assert np.abs(full.mean((1, 2, 3)) - shown.mean((1, 2, 3))).max() < 5
    indices = np.array([9, 2])
    for total in (None, len(shown)):
        np.testing.assert_array_equal(decode.decode_frames(video, indices, total), full[indices])
    if shutil.which("ffmpeg"):
        np.testing.assert_array_equal(clips.by_ffmpeg(video, shown.shape[1:]), full)


def test_pixels_are_those_that_are_stored_whatever_shape_they_are_to_be_shown_in():
    wide = clips.encode(clips.moving_square(FRAMES), options={"x264-params": "sar=16/11:mbtree=0"})
    with av.open(io.BytesIO(wide)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    assert decode.validate(wide) == decode.validate(VIDEOS["b_frames"])
    frames = decode.decode_frames(wide, np.array([3, 20]), FRAMES)
    np.testing.assert_array_equal(frames, FULL["b_frames"][[3, 20]])


def test_text_in_another_encoding_is_no_damage():
    assert VIDEOS["b_frames"].count(b"Lavf") == 1
    video = VIDEOS["b_frames"].replace(b"Lavf", b"La\xdff")
    assert decode.validate(video).frames == FRAMES
    assert decode.decode_frames(video, np.array([8]), FRAMES).shape == (1, 48, 64, 3)


def _still_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


MP4 = VIDEOS["b_frames"]
FAST_START = clips.encode(clips.moving_square(FRAMES), muxer={"movflags": "faststart"})


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (b"", "empty"),
        (b"not a video at all\n" * 50, "Invalid data"),
        (bytes(4096), "Invalid data"),
        (_still_image(), "still image"),
        (clips.sound_only(), "no video stream"),
        (MP4[: len(MP4) // 2], "Invalid data"),  # without its index, which comes last
        (FAST_START[: len(FAST_START) // 2], "Invalid data|truncated"),
        (FAST_START[: len(FAST_START) - 200], "Invalid data|truncated"),
        (VIDEOS["mpeg4_avi"][: len(VIDEOS["mpeg4_avi"]) * 2 // 3], "truncated"),
        (clips.encode(clips.moving_square(100), container="matroska")[:-12_000], "truncated"),
    ],
)
def test_what_is_no_whole_video_is_rejected_in_one_line(video, reason):
    with pytest.raises(decode.DecodeError, match=reason) as caught:
        decode.validate(video)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    whole=st.sampled_from([MP4, FAST_START, VIDEOS["mpeg4_avi"], VIDEOS["h264_mkv"]]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=40),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_garbage_raises_nothing_but_a_decode_error(whole, changes, kept):
    video = bytearray(whole)
    for place, value in changes:
        video[int(place * len(video))] = value
    video = bytes(video[: int(kept * len(video))])
    for attempt in (
        lambda: decode.validate(video),
        lambda: decode.decode_frames(video, np.array([0, 30])),
        lambda: decode.decode_frames(video, np.array([0, 30]), FRAMES),
    ):
        try:
            attempt()
        except decode.DecodeError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("index", [FRAMES, -1])
def test_a_frame_that_is_not_there(index):
    with pytest.raises(decode.DecodeError):
        decode.decode_frames(MP4, np.array([0, index]), FRAMES)


@pytest.mark.skipif(int(av.__version__.split(".")[0]) > 18, reason="the FFmpeg of PyAV 19 decodes it")
def test_an_animated_webp_is_called_so_with_a_way_out():
    images = [Image.fromarray(frame) for frame in clips.moving_square(3)]
    animated, still = io.BytesIO(), io.BytesIO()
    images[0].save(animated, "WEBP", save_all=True, append_images=images[1:])
    images[0].save(still, "WEBP")
    with pytest.raises(decode.DecodeError, match="animated WebP, which FFmpeg cannot decode: save it as MP4"):
        decode.validate(animated.getvalue())
    with pytest.raises(decode.DecodeError, match="still image"):
        decode.validate(still.getvalue())


def test_opening_a_file_reads_its_head_alone():
    file = io.BytesIO(
        clips.encode(clips.moving_square(40), muxer={"movflags": "faststart"}) + bytes(50_000_000)
    )
    decode.check_opens(file)
    assert file.tell() < 10_000_000
    with pytest.raises(decode.DecodeError, match="empty"):
        decode.check_opens(io.BytesIO())
