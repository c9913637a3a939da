"""Predict while frames come in: `inti_jax.stream(RUN, every=...)`."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from inti_jax.config import Data
from inti_jax.data.augmentation import augment
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation.classifier import VideoClassifier, load
from inti_jax.models import in_memory, parameters, sliding
from inti_jax.models.parameters import Params
from inti_jax.models.sliding import Kept
from inti_jax.models.video import VideoModel
from inti_jax.runs import checkpoint
from inti_jax.runs.evaluations import Weights


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer of a model on one window of a stream.

    The window's frames are `start`, `start + stride`, ..., counted from 0 over all frames that were pushed or
    skipped; `end` is one more than the last of them. So `frames[start:end:stride]` are its frames.
    """

    start: int
    end: int
    logits: Float[np.ndarray, " K"]
    probabilities: Float[np.ndarray, " K"]


class Stream:
    """A trained model on windows that slide over a stream of frames.

    A window is T frames of the model, T as the run was trained, and one starts every `every` of them. Each
    `stride`-th frame that is pushed is one of the model's. What a window shares with the one before it is
    computed once, as far as no frame depends on others (`models/sliding.py`), and the answers are those of
    `inti_jax.load` on each window. Memory does not grow with the stream.
    """

    def __init__(self, model: VideoClassifier, every: int | None = None, *, stride: int | None = None):
        """Start a stream of a model that `inti_jax.load` returned; see `stream` for the rest."""
        self.labels = model.labels
        data, ratio = model.config.data, model.ratio
        self.frames = data.num_frames
        self.every = sliding.default_every(self.frames, ratio) if every is None else every
        sliding.check_every(self.every, ratio)
        self.stride = own_stride(data) if stride is None else stride
        if self.stride < 1:
            raise UsageError(f"`stride` is {stride}: it should be at least 1")
        self._params = model.params
        self._size = data.height_width
        self._enter, self._answer = _compiled(model.graphdef, self.frames, model.config.train.multi_label)
        # Frames enter the model by so many at a time, of which windows and hops are multiples.
        self._part = math.gcd(self.every, self.frames)
        self._kept: collections.deque[Kept] = collections.deque(maxlen=self.frames // self._part)
        self._waiting: list[UInt8[np.ndarray, "h w 3"]] = []
        self._pushed = self._origin = self._seen = 0  # `_seen`: frames of the model since the origin

    def push(self, frames: Any) -> list[Prediction]:
        """Take the next frames, uint8 `[N, H, W, 3]`, and return the predictions that became due.

        Frames may also be of the other types that `VideoClassifier.__call__` takes. They are resized and
        cropped to the centre as in evaluation, each by its own size, so the resolution may change from one
        call to the next. Raises UserError for another shape or type, and where the outputs are not finite.
        """
        due = []
        for frame in _one_clip(frames):
            if (self._pushed - self._origin) % self.stride == 0:
                due += self._add(frame)
            self._pushed += 1
        return [self._prediction(first, *jax.device_get(answer)) for first, answer in due]

    def compile(self) -> None:
        """Compile the model's programs now, so that the first frames do not wait for it."""
        part = self._enter(self._params, np.zeros((self._part, *self._size, 3), np.uint8))
        jax.block_until_ready(self._answer(self._params, (part,) * (self.frames // self._part)))

    def skip(self, frames: int) -> None:
        """Count `frames` frames that are lost. The next window starts behind them, and none spans them."""
        self._pushed += frames
        self._origin, self._seen = self._pushed, 0
        self._kept.clear()
        self._waiting.clear()

    def _add(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[tuple[int, tuple[Array, Array]]]:
        """Take a frame of the model. Where a window is full, return its first frame and its answer.

        The answer may still be computed, beside the host's work on the next frames.
        """
        between = self._seen % self.every >= self.frames  # two windows
        self._seen += 1
        if not between:
            self._waiting.append(augment.test_views(frame[None], self._size, crops=1)[0, 0])
            if len(self._waiting) == self._part:
                self._kept.append(self._enter(self._params, np.stack(self._waiting)))
                self._waiting.clear()
        first = self._seen - self.frames
        if first < 0 or first % self.every:
            return []
        return [(first, self._answer(self._params, tuple(self._kept)))]

    def _prediction(
        self, first: int, logits: Float[np.ndarray, " K"], probabilities: Float[np.ndarray, " K"]
    ) -> Prediction:
        if not np.isfinite(logits).all():
            raise UserError(
                "the model's outputs are not finite: its training diverged; take the checkpoint of an "
                "earlier step"
            )
        start = self._origin + first * self.stride
        return Prediction(start, start + (self.frames - 1) * self.stride + 1, logits, probabilities)


def stream(
    path: str | Path,
    every: int | None = None,
    *,
    stride: int | None = None,
    pretrained: str | Path | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
) -> Stream:
    """Start a stream of a run's model: `push` frames into it, and take the predictions that became due.

    A window has the T frames of the run's config. The next one starts `every` of the model's frames later, a
    multiple of the frames that its compressors make one, by default about half a window. `stride` is the
    distance of two of the model's frames in those that are pushed, by default the run's `data.stride`; 1 for
    a run whose clips are spread over whole videos (`data.sampling` = "uniform"). The other arguments are
    those of `inti_jax.load`; for several streams of one model, load it and make a `Stream` for each. Raises
    UserError as `inti_jax.load`, and for another `every`.

    Example:
        >>> import inti_jax, numpy
        >>> stream = inti_jax.stream("runs/mine")
        >>> for frame in numpy.zeros((30, 240, 320, 3), numpy.uint8):
        ...     for prediction in stream.push(frame[None]):
        ...         label = stream.labels[prediction.probabilities.argmax()]
        ...         print(prediction.start, prediction.end, label in stream.labels)
        0 15 True
        8 23 True
    """
    return Stream(load(path, pretrained=pretrained, step=step, weights=weights), every, stride=stride)


def own_stride(data: Data) -> int:
    """Choose the distance of two of the model's frames in a stream: the run's, or 1 where it has none."""
    return data.stride if data.sampling == "dense" else 1


def _one_clip(frames: Any) -> UInt8[np.ndarray, "N H W 3"]:
    clips, several = in_memory.clips(frames)
    if several:
        raise UserError(f"a stream takes frames in order, [N, H, W, 3], not {len(clips)} videos")
    if 0 in clips[0].shape[1:3]:
        raise UserError(f"frames of {clips[0].shape[1]} x {clips[0].shape[2]} pixels show nothing")
    return clips[0]


@functools.lru_cache(maxsize=4)  # so that streams of one model share its programs
def _compiled(
    graphdef: nnx.GraphDef[VideoModel], frames: int, multi_label: bool
) -> tuple[Callable[..., Kept], Callable[..., tuple[Array, Array]]]:
    """Compile what enters a stream, and a window's logits and probabilities."""

    def enter(params: Params, part: UInt8[Array, "n H W 3"]) -> Kept:
        return sliding.enter(parameters.merge(graphdef, params), part)

    def answer(params: Params, kept: tuple[Kept, ...]) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
        logits = sliding.logits(parameters.merge(graphdef, params), kept, frames)
        return logits, (jax.nn.sigmoid if multi_label else jax.nn.softmax)(logits)

    return jax.jit(enter), jax.jit(answer)
