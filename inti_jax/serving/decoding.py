"""Make clips of videos in a process of its own, which trusts no file and may be killed at any time.

The process is told of a file by its descriptor, and answers with JSON and the bytes of the clip. So a decoder
that a file has taken over can lie about this file, and no more.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import resource
import signal
import socket
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from inti_jax import config
from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.codec.decode import DecodeError, VideoInfo
from inti_jax.data.dataset import FileDataset
from inti_jax.serving.limits import MEBIBYTE, Limits

HEAD = struct.Struct(">I")  # bytes of the JSON that follows
_READY = b"+"
_SPARE_BYTES = 64 * MEBIBYTE  # of a decoder beside the file and the frames that are kept
_SPARE_SECONDS = 5.0  # by which a process outlives its deadline where nobody ends it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Describe how a clip is made of a video: the run's sampling and views, and the limits of a video."""

    data: config.Data
    views: config.Eval
    limits: Limits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a video's views, [V, T, H, W, 3]."""
        data, views = self.data, self.views
        return views.clips * views.crops, data.num_frames, *data.height_width, 3

    def load(self, path: Path) -> tuple[VideoInfo, UInt8[np.ndarray, "V T H W 3"]]:
        """Decode a video as the evaluation does. Raises DecodeError, also for one that is too large."""
        with path.open("rb") as file:
            height, width = decode.announced_size(file)
        source = FileDataset([path], functools.partial(self._choose, height, width))
        example = source[0]
        return VideoInfo(example.frames, example.fps, example.height, example.width), pipeline.load_views(
            example, self.data, self.views
        )

    def _choose(self, height: int, width: int, total: int) -> Int64[np.ndarray, " n"]:
        """Choose the frames of the views, unless there are too many, or they are too large."""
        if total > self.limits.frames:
            raise DecodeError(f"it has {total} frames, and at most {self.limits.frames} are decoded")
        indices = pipeline.view_indices(total, self.data, self.views)
        frames = len(set(indices.tolist()))
        if (needed := 3 * frames * height * width) > self.limits.decode_bytes:
            raise DecodeError(
                f"{frames} frames of {width} x {height} pixels take {needed / MEBIBYTE:.0f} MiB, and at most "
                f"{self.limits.decode_bytes / MEBIBYTE:.0f} MiB are used"
            )
        return indices


def run(channel: socket.socket, recipe: Recipe) -> None:
    """Answer for each descriptor that comes by `channel`, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the server, which ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a file may take comes on top of what the libraries have taken.
    most = _data_bytes() + recipe.limits.decode_bytes + recipe.limits.upload_bytes + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with channel:
        channel.sendall(_READY)
        while True:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            if not descriptors:
                return
            # Its server may be gone by then.
            signal.setitimer(signal.ITIMER_REAL, recipe.limits.decode_seconds + _SPARE_SECONDS)
            (descriptor,) = descriptors
            try:
                head, clip = _answer(Path(f"/proc/self/fd/{descriptor}"), recipe)
            finally:
                os.close(descriptor)
            signal.setitimer(signal.ITIMER_REAL, 0)
            text = json.dumps(head).encode()
            channel.sendall(HEAD.pack(len(text)) + text)
            if clip is not None:
                channel.sendall(np.ascontiguousarray(clip).data.cast("B"))


def _answer(path: Path, recipe: Recipe) -> tuple[dict, np.ndarray | None]:
    try:
        info, clip = recipe.load(path)
    except DecodeError as error:
        return {"error": str(error)}, None
    except MemoryError:
        return {"error": "decoding it takes too much memory"}, None
    fps = info.fps if math.isfinite(info.fps) else 0.0
    return {"frames": info.frames, "fps": fps, "height": info.height, "width": info.width}, clip


def _data_bytes() -> int:
    """Read how much private memory this process has mapped, which RLIMIT_DATA is about."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 1024 * MEBIBYTE
