import io
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from inti_jax.data.codec import decode
from inti_jax.data.codec.reencode import reencode
from tests.data import clips
from tests.data.codec.orientation_test import ORIENTATIONS


def _scaled(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frames brought to `size`, by another way than through a video file."""
    height, width = size
    frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in video]
    frames = [frame.reformat(width=width, height=height, interpolation="BICUBIC") for frame in frames]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def _differences(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The mean difference of each frame from its counterpart."""
    return np.abs(frames.astype(int) - others).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((96, 128), 48, (48, 64)),
        ((128, 96), 48, (64, 48)),
        ((90, 160), 48, (48, 86)),  # 85.3: the nearest even number
        ((48, 64), 48, (48, 64)),
        ((48, 64), 256, (48, 64)),  # never larger
        ((64, 64), 32, (32, 32)),
        ((34, 400), 16, (16, 188)),
    ],
)
def test_frames_stay_what_they_are_in_the_order_they_have(size, short_side, expected):
    video = clips.encode(clips.numbered(40, *size))
    encoded, info = reencode(video, short_side)
    assert (info.frames, info.fps, info.height, info.width) == (40, 25.0, *expected)
    assert info == decode.validate(encoded)
    frames = clips.decode_all(encoded)
    assert frames.shape == (40, *expected, 3)
    assert clips.numbers(frames) == [*range(40)]


@pytest.mark.parametrize("size", [(49, 65), (48, 65), (49, 64), (17, 33)])
def test_odd_sizes_become_even_and_no_larger(size):
    video = clips.encode(clips.moving_square(6, *size), codec="ffv1", container="matroska")
    assert decode.validate(video).height == size[0]
    _, info = reencode(video, 256)
    assert (info.height, info.width) == (size[0] // 2 * 2, size[1] // 2 * 2)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_what_the_file_turns_or_mirrors_is_turned_or_mirrored(name):
    video = clips.with_matrix(clips.encode(clips.moving_square(10, 64, 96)), *ORIENTATIONS[name])
    turns = ORIENTATIONS[name][0] == 0
    upright = decode.decode_frames(video, np.arange(10), 10)
    encoded, info = reencode(video, 32)
    assert (info.height, info.width) == ((48, 32) if turns else (32, 48))
    frames = clips.decode_all(encoded)
    assert _differences(frames, _scaled(upright, (info.height, info.width))).max() < 14
    with av.open(io.BytesIO(encoded)) as container:
        assert all("DISPLAYMATRIX" not in frame.side_data for frame in container.decode(video=0))


@pytest.mark.parametrize(("turns", "expected"), [(0, Fraction(16, 11)), (1, Fraction(11, 16))])
def test_pixels_that_are_not_square_stay_so_and_are_shown_in_the_same_shape(turns, expected):
    video = clips.encode(clips.moving_square(10, 64, 96), options={"x264-params": "sar=16/11"})
    square = clips.encode(clips.moving_square(10, 64, 96))
    (encoded, info), (_, of_square) = (reencode(clips.turned(file, turns), 32) for file in (video, square))
    assert info == of_square
    with av.open(io.BytesIO(encoded)) as container:
        assert container.streams.video[0].sample_aspect_ratio == expected


def test_the_stream_is_encoded_that_decoding_takes():
    small, large = clips.moving_square(10, 32, 48), clips.numbered(10, 64, 96)
    streams = [(small, Disposition.original), (large, Disposition.default)]
    encoded, info = reencode(clips.several_streams(streams, container="matroska"), 64)
    assert (info.height, info.width) == (64, 96)
    assert clips.numbers(clips.decode_all(encoded)) == [*range(10)]


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "mpeg4", "container": "avi", "b_frames": 0},
        {"codec": "mjpeg", "container": "avi", "b_frames": 0},
        {"container": "matroska", "gop": 250},
        {"container": "mpegts"},
        {"fps": 1},
        {"audio": True},
        {"times": [0, 1, 2, 10, 11, 30, 31, 90, 91, 400]},
    ],
    ids=str,
)
def test_whatever_holds_the_video(options):
    video = clips.encode(clips.numbered(10, 64, 96), **options)
    before = decode.validate(video)
    encoded, info = reencode(video, 32)
    assert info.frames == before.frames
    assert info.fps == pytest.approx(before.fps, rel=1e-3)
    assert clips.numbers(clips.decode_all(encoded)) == [*range(before.frames)]
    with av.open(io.BytesIO(encoded)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("space", ["bt709", "smpte170m"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_stay_what_decoding_makes_of_them(space, full_range):
    colours = np.zeros((6, 64, 96, 3), np.uint8)
    colours[:, :32, :48], colours[:, 32:, 48:], colours[:, :32, 48:] = (
        (220, 40, 30),
        (20, 200, 60),
        (255, 255, 255),
    )
    options = {"colorspace": space, "color_range": "pc" if full_range else "tv"}
    video = clips.encode(colours, options=options)
    encoded, _ = reencode(video, 64)
    before, after = (
        decode.decode_frames(content, np.arange(6), 6).astype(int) for content in (video, encoded)
    )
    for rows, columns in (
        (slice(4, 28), slice(4, 44)),
        (slice(36, 60), slice(52, 92)),
        (slice(4, 28), slice(52, 92)),
    ):
        assert np.abs(before[:, rows, columns] - after[:, rows, columns]).max() <= 6


def test_the_same_video_gives_the_same_bytes_in_every_thread():
    # Wide enough for the encoder's macroblock tree to have shown it.
    video = clips.encode(clips.moving_square(70, 256, 340))
    results = []
    threads = [threading.Thread(target=lambda: results.append(reencode(video, 256)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1


def test_a_keyframe_is_never_far():
    encoded, _ = reencode(clips.encode(clips.moving_square(100, 64, 96), gop=250), 32)
    with av.open(io.BytesIO(encoded)) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys[0] == 0 and max(np.diff([*keys, 100])) <= 24
    assert max(keys) > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        clips.sound_only(),
        clips.encode(clips.moving_square(30, 64, 96))[:4000],
        clips.encode(clips.moving_square(30, 64, 96), container="matroska")[:3000],
        clips.damaged(clips.encode(clips.moving_square(30, 64, 96)), range(9, 13)),
    ],
    ids=["empty", "text", "sound", "truncated", "truncated_matroska", "damaged"],
)
def test_what_is_rejected_is_rejected_for_the_same_reason(content):
    with pytest.raises(decode.DecodeError) as plain:
        decode.validate(content)
    with pytest.raises(decode.DecodeError) as encoded:
        reencode(content, 32)
    assert str(encoded.value) == str(plain.value)


def test_a_still_image_is_rejected():
    picture = io.BytesIO()
    with av.open(picture, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb24"
        frame = av.VideoFrame.from_ndarray(clips.moving_square(1, 64, 96)[0], format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(decode.DecodeError, match="still image"):
        reencode(picture.getvalue(), 32)


def test_a_title_that_is_no_text_is_in_nobodys_way():
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(clips.encode(clips.moving_square(6)))) as source,
        av.open(file, "w", "mp4") as out,
    ):
        out.metadata["title"] = "caf\u00e9"
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    video = file.getvalue().replace("caf\u00e9".encode(), b"caf\xff\xff")
    with pytest.raises(UnicodeDecodeError):
        av.open(io.BytesIO(video))
    assert reencode(video, 256)[1] == decode.validate(video)
