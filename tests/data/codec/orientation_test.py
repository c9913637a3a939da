"""All turns and mirrorings: by the matrix's arithmetic, and by the `ffmpeg` program where it is installed."""

import io
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from inti_jax.data.codec import decode
from tests.data import clips

ORIENTATIONS = {
    "as it is": (1, 0, 0, 1),
    "a quarter turn": (0, 1, -1, 0),
    "half a turn": (-1, 0, 0, -1),
    "three quarter turns": (0, -1, 1, 0),
    "left to right": (-1, 0, 0, 1),
    "top to bottom": (1, 0, 0, -1),
    "along the diagonal": (0, 1, 1, 0),
    "along the other diagonal": (0, -1, -1, 0),
}
SHARED = Path(__file__).parents[4] / "shared" / "faults"
PLAIN = clips.encode(clips.moving_square(30))
STORED = clips.decode_all(PLAIN)


def _by_the_matrix(frames: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Each pixel brought to where the matrix says, one by one."""
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = np.zeros((len(frames), to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    shown[:, to_y, to_x] = frames[:, y, x]
    return shown


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_frames_are_as_displayed(name):
    matrix = ORIENTATIONS[name]
    video = clips.with_matrix(PLAIN, *matrix)
    expected = _by_the_matrix(STORED, *matrix)
    info, frames = decode.decode_and_validate(video, lambda total: np.arange(total))
    assert (info.frames, info.height, info.width) == expected.shape[:3]
    np.testing.assert_array_equal(np.stack([frames[index] for index in range(30)]), expected)
    indices = np.array([20, 3])
    for total in (None, 30):
        np.testing.assert_array_equal(decode.decode_frames(video, indices, total), expected[indices])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the `ffmpeg` program is not installed")
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_frames_are_those_of_ffmpeg(name):
    video = clips.with_matrix(PLAIN, *ORIENTATIONS[name])
    frames = decode.decode_frames(video, np.arange(30), 30)
    np.testing.assert_array_equal(frames, clips.by_ffmpeg(video, frames.shape[1:]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared files are not there")
def test_the_shared_file_that_is_mirrored():
    plain, mirrored = ((SHARED / name).read_bytes() for name in ("base.mp4", "hflip.mp4"))
    frames = decode.decode_frames(plain, np.arange(50), 50)
    np.testing.assert_array_equal(decode.decode_frames(mirrored, np.arange(50), 50), frames[:, :, ::-1])


def _turned_by(degrees: float) -> tuple[float, float, float, float]:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return cos, sin, -sin, cos


@pytest.mark.parametrize(
    ("degrees", "nearest"), [(3, 0), (-44, 0), (46, 90), (100, 90), (181, 180), (265, 270)]
)
def test_other_angles_become_the_nearest_quarter_turn(degrees, nearest):
    video, exact = (clips.with_matrix(PLAIN, *_turned_by(angle)) for angle in (degrees, nearest))
    assert decode.validate(video) == decode.validate(exact)
    frames = decode.decode_frames(video, np.array([5]), 30)
    np.testing.assert_array_equal(frames, decode.decode_frames(exact, np.array([5]), 30))


@pytest.mark.parametrize("matrix", [(2, 0, 0, 0.5), (0, 0, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)])
def test_a_matrix_that_only_scales_or_shows_nothing_is_left_out(matrix):
    np.testing.assert_array_equal(
        decode.decode_frames(clips.with_matrix(PLAIN, *matrix), np.array([5]), 30), STORED[[5]]
    )


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("rotate=0:flip=vertical", lambda frame: frame[::-1]),
        ("rotate=0:flip=horizontal", lambda frame: frame[:, ::-1]),
    ],
)
def test_a_matrix_in_the_stream_is_that_of_its_frame_alone(how, first):
    """A message in the stream before one frame, here the first, and none before the others."""
    file = io.BytesIO()
    with av.open(io.BytesIO(PLAIN)) as source, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        inserted = BitStreamFilterContext(
            f"h264_metadata=display_orientation=insert:{how}", source.streams.video[0], stream
        )
        for packet in source.demux(video=0):
            output.mux(inserted.filter(packet))
    video = file.getvalue()
    expected = np.concatenate([first(STORED[0])[None], STORED[1:]])
    frames = decode.decode_frames(video, np.arange(30), 30)
    np.testing.assert_array_equal(frames, expected)
    for index in (0, 5):
        for total in (None, 30):
            alone = decode.decode_frames(video, np.array([index]), total)
            np.testing.assert_array_equal(alone, frames[[index]])
    if shutil.which("ffmpeg"):
        np.testing.assert_array_equal(frames, clips.by_ffmpeg(video, frames.shape[1:]))


def test_frames_whose_side_data_pyav_does_not_know_are_turned():
    """Photos in an AVI, each with its EXIF data, of which FFmpeg makes a matrix and a kind new to PyAV."""
    image = Image.fromarray(clips.moving_square(1, 48, 64)[0])
    exif, photo, file = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(photo, "JPEG", exif=exif, quality=95)
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        output.start_encoding()
        for number in range(3):
            packet = av.Packet(photo.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = number
            output.mux(packet)
    video = file.getvalue()
    with av.open(io.BytesIO(video)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24", threads=1)
    info = decode.validate(video)
    assert (info.frames, info.height, info.width) == (3, 64, 48)
    np.testing.assert_array_equal(decode.decode_frames(video, np.array([1]), 3)[0], np.rot90(stored, -1))
