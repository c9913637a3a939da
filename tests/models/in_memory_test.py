"""Videos and images in the forms in which programs hold them."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from inti_jax.errors import UserError
from inti_jax.models import in_memory

VIDEO = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
GREY = np.ascontiguousarray(VIDEO[..., :1])
RGBA = np.concatenate([VIDEO, GREY], axis=-1)


class OnADevice:
    """An array that has to be brought to the host first, as torch's on a GPU, and tracked by its library."""

    def detach(self):
        return self

    def cpu(self):
        return VIDEO


class ByDlpack:
    """An array of a library that has DLPack and nothing of NumPy's."""

    def __dlpack__(self, **options):
        return VIDEO.__dlpack__(**options)

    def __dlpack_device__(self):
        return VIDEO.__dlpack_device__()


def truncated_picture():
    file = io.BytesIO()
    Image.fromarray(VIDEO[0]).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:-40]))


def pictures(mode="RGB"):
    return [Image.fromarray(frame).convert(mode) for frame in VIDEO]


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        (VIDEO, VIDEO),
        (jnp.asarray(VIDEO), VIDEO),
        (torch.from_numpy(VIDEO), VIDEO),
        (torch.from_numpy(VIDEO.transpose(0, 3, 1, 2).copy()).permute(0, 2, 3, 1), VIDEO),
        (OnADevice(), VIDEO),
        (ByDlpack(), VIDEO),
        (list(VIDEO), VIDEO),
        (tuple(torch.from_numpy(VIDEO)), VIDEO),
        ([jnp.asarray(frame) for frame in VIDEO], VIDEO),
        (pictures(), VIDEO),
        (pictures("RGBA"), VIDEO),
        ([Image.fromarray(frame[..., 0]).convert("LA") for frame in GREY], np.repeat(GREY, 3, -1)),
        (RGBA, VIDEO),
        (list(RGBA), VIDEO),
        (GREY, np.repeat(GREY, 3, -1)),
        (list(GREY), np.repeat(GREY, 3, -1)),
        (list(GREY[..., 0]), np.repeat(GREY, 3, -1)),
        ([Image.fromarray(frame[..., 0]) for frame in GREY], np.repeat(GREY, 3, -1)),
        (VIDEO[:0], VIDEO[:0]),
    ],
)
def test_a_clip_in_any_form(video, expected):
    (clip,), several = in_memory.clips(video)
    assert not several and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, expected)


@pytest.mark.parametrize(
    "videos",
    [
        np.stack([VIDEO, VIDEO[::-1]]),
        torch.from_numpy(np.stack([VIDEO, VIDEO[::-1]])),
        [VIDEO, VIDEO[::-1]],
        [torch.from_numpy(VIDEO), jnp.asarray(VIDEO[::-1])],
        [list(VIDEO), pictures()[::-1]],
        np.stack([RGBA, RGBA[::-1]]),
    ],
)
def test_several_clips(videos):
    found, several = in_memory.clips(videos)
    assert several
    np.testing.assert_array_equal(np.stack(found), np.stack([VIDEO, VIDEO[::-1]]))


def test_no_clips():
    assert in_memory.clips(np.zeros((0, 4, 6, 8, 3), np.uint8)) == ([], True)


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ("a/clip.mp4", r"not the path a/clip.mp4: `python -m inti_jax\.predict --checkpoint RUN VIDEO`"),
        ([Path("a/clip.mp4")], r"not the path a/clip.mp4: .*inti_jax\.predict"),
        ([], "not an empty list"),
        ([[]], "video 0 has no frames"),
        (None, "not NoneType"),
        ({"video": VIDEO}, "not dict"),
        (iter(VIDEO), "not .*iterator"),
        (object(), "not object"),
        (pictures()[0], "not one picture: give a list of them"),
        ([truncated_picture()], "a picture cannot be read: image file is truncated"),
        ([Image.new("I;16", (8, 6))], r"more than 8 bits a channel \(mode I;16\)"),
        (VIDEO / np.float32(255), r"not float32 \[4, 6, 8, 3\]: give pixels in 0..255 as uint8"),
        (torch.rand(4, 6, 8, 3, requires_grad=True), r"not float32 .*uint8"),
        (torch.zeros(4, 6, 8, 3, dtype=torch.bfloat16), r"not Tensor: .*BFloat16"),
        (VIDEO.tolist(), r"not int64 \[8, 3\]|frame 0 of video 0 is int64"),
        (VIDEO.astype(np.int64), "not int64 .*uint8"),
        (VIDEO.transpose(0, 3, 1, 2), r"not uint8 \[4, 3, 6, 8\]: channels come last"),
        (VIDEO.transpose(3, 0, 1, 2), r"not uint8 \[3, 4, 6, 8\]"),
        (list(VIDEO.transpose(0, 3, 1, 2)), r"frame 0 of the video is uint8 \[3, 6, 8\]: channels come last"),
        (VIDEO[0], r"not uint8 \[6, 8, 3\]: that is one frame, and \[x\] a video of it"),
        (GREY[..., 0], r"not uint8 \[4, 6, 8\]: grey frames are \[T, H, W, 1\]"),
        (VIDEO[..., :2], r"not uint8 \[4, 6, 8, 2\]"),
        ([VIDEO[0], VIDEO[1, :3]], r"differ in size: frame 1 is \[3, 8\], the first \[6, 8\]"),
        ([VIDEO, VIDEO[0]], r"not uint8 \[6, 8, 3\]"),
        (np.zeros((1, 1, 1, 1, 1, 3), np.uint8), r"not uint8 \[1, 1, 1, 1, 1, 3\]"),
    ],
)
def test_anything_else_is_refused_in_one_line(video, said):
    with pytest.raises(UserError, match=said) as caught:
        in_memory.clips(video)
    assert "\n" not in str(caught.value)
