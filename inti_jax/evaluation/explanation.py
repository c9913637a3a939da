"""Explain a trained model's answer: `inti_jax.explain(RUN, video)` says which frames and patches it is from.

Weights of compressors, shares along them and attention rollout are read off one forward pass, see
models/attribution.py. Taking frames away checks them: what had a large share should be missed.
"""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Array, Float, Int, Int64, UInt8

from inti_jax.data import pipeline
from inti_jax.data.codec.decode import DecodeError
from inti_jax.data.dataset import FileDataset
from inti_jax.errors import UserError
from inti_jax.evaluation.classifier import VideoClassifier, load
from inti_jax.host.paths import input_path
from inti_jax.models import attribution, parameters
from inti_jax.models.trace import Blend, Trace
from inti_jax.models.video import VideoModel
from inti_jax.runs import checkpoint
from inti_jax.runs.evaluations import Weights


@dataclasses.dataclass(frozen=True)
class Layer:
    """The weights of one compressor for one clip.

    `weights[s, n, k]` is that of frame s * g + k of the layer's input in token n of frame s of its output.
    """

    block: int  # the number of the block before the layer, from 1
    weights: Float[np.ndarray, "S N g"]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The arrays that explain a model's answer on one clip of T frames, of H x W pixels as the model takes.

    Each frame has N tokens: those that `prefix` names, such as the class token, then the patches, row by row.
    A model without compression has no `layers`, and shares of 1.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    numbers: Int64[np.ndarray, " T"]  # of the frames in the video that they were taken from, from 0
    seconds: Float[np.ndarray, " T"] | None  # from the start of a file to each frame
    labels: tuple[str, ...]  # of the K classes
    logits: Float[np.ndarray, " K"]
    probabilities: Float[np.ndarray, " K"]
    prefix: tuple[str, ...]
    grid: tuple[int, int]  # rows and columns of patches
    layers: tuple[Layer, ...]  # the compressors in their order
    # The share of each token in the one that it is blended or merged into. Over the tokens that become one,
    # shares sum to 1: with compressors, over the frames of a group at each position.
    shares: Float[np.ndarray, "T N"]
    # The share of each token in what the head sees, by attention rollout and the blends: 1 in total.
    rollout: Float[np.ndarray, "T N"]
    # The index of the token that each one is merged into (ToMe), in its frame after the last block.
    places: Int[np.ndarray, "T N"]
    # The fall of the log-odds and of the probability of the predicted class when a frame is taken away: when
    # the frame before it is in its place, or for the first the one after it.
    log_odds_effects: Float[np.ndarray, " T"]
    probability_effects: Float[np.ndarray, " T"]

    @property
    def predicted(self) -> int:
        """The index of the class with the largest logit."""
        return int(self.logits.argmax())

    @property
    def ratio(self) -> int:
        """The number of frames that the compressors make one."""
        return math.prod(layer.weights.shape[-1] for layer in self.layers)

    @property
    def fates(self) -> Float[np.ndarray, "T 3"]:
        """The shares of a frame's patches that were kept, averaged and faded; see `attribution.fates`."""
        return attribution.fates(self.shares[:, len(self.prefix) :], self.ratio)

    @property
    def frame_shares(self) -> Float[np.ndarray, " T"]:
        """The mean of `shares` over each frame's patches."""
        return self.shares[:, len(self.prefix) :].mean(axis=1)

    @property
    def frame_rollout(self) -> Float[np.ndarray, " T"]:
        """The share of each frame in what the head sees, by `rollout`: 1 in total."""
        return self.rollout.sum(axis=1)

    @property
    def share_correlation(self) -> float | None:
        """The rank correlation of `frame_shares` with the sizes of `log_odds_effects`."""
        return rank_correlation(self.frame_shares, np.abs(self.log_odds_effects))

    @property
    def rollout_correlation(self) -> float | None:
        """The rank correlation of `frame_rollout` with the sizes of `log_odds_effects`."""
        return rank_correlation(self.frame_rollout, np.abs(self.log_odds_effects))

    def on_grid(self, tokens: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T h w"]:
        """Select the patches of `shares`, `rollout` or the like, and lay them out as the grid."""
        return tokens[:, len(self.prefix) :].reshape(-1, *self.grid)


def rank_correlation(a: Float[np.ndarray, " T"], b: Float[np.ndarray, " T"]) -> float | None:
    """Compute Spearman's rank correlation; None where it is not defined, because one of the two is constant.

    Values that differ by rounding alone count as constant.
    """
    if any(np.ptp(values) <= 1e-6 * np.abs(values).max() for values in (a, b)):
        return None
    return float(scipy.stats.spearmanr(a, b).statistic)


class Explainer:
    """A trained model on one device, as a function from one video to the Explanation of its answer."""

    def __init__(self, model: VideoClassifier):
        """Take the model that `inti_jax.load` returned."""
        self._model = model
        self.record = model.record
        graphdef = model.graphdef

        def traced(params: parameters.Params, clip: UInt8[Array, "T H W 3"]) -> tuple[Array, Trace]:
            logits, trace = parameters.merge(graphdef, params).trace(clip[None])
            return logits[0], trace

        self._traced = jax.jit(traced)
        self._occluded = jax.jit(
            lambda params, clip: occluded_logits(parameters.merge(graphdef, params), clip)
        )

    def __call__(self, video: Any) -> Explanation:
        """Explain the answer on one clip, or on the middle view that the evaluation takes of a file.

        `video` is uint8 `[T, H, W, 3]` or the like, see `VideoClassifier.__call__`, or a path of a file or of
        a folder of frames. Raises UserError for other videos, and for a file that does not decode.
        """
        if isinstance(video, str | os.PathLike):
            path = input_path(video)
            return self._explain(str(path), *self._decode(path))
        clips, several = self._model.crop(video)
        if several:
            raise UserError(f"one video is explained at a time, [T, H, W, 3], not {len(clips)}")
        return self._explain("the video", clips[0], np.arange(len(clips[0])), None)

    def _decode(
        self, path: Path
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Int64[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Decode the middle clip's middle crop; also give its frames' numbers and times."""
        data, views = self.record.config.data, self.record.config.eval
        middle = views.clips // 2

        def choose(frames: int) -> Int64[np.ndarray, " n"]:
            return pipeline.view_indices(frames, data, views)

        try:
            example = FileDataset([path], choose)[0]
            crops = pipeline.load_views(example, data, views)
        except DecodeError as error:
            raise UserError(f"{path}: {error}") from None
        numbers = choose(example.frames).reshape(views.clips, -1)[middle]
        return crops[middle * views.crops + views.crops // 2], numbers, numbers / example.fps

    def _explain(
        self,
        name: str,
        clip: UInt8[np.ndarray, "T H W 3"],
        numbers: Int64[np.ndarray, " T"],
        seconds: Float[np.ndarray, " T"] | None,
    ) -> Explanation:
        params = self._model.params
        logits, trace = jax.device_get(self._traced(params, clip))
        occluded = np.asarray(self._occluded(params, clip))
        all_logits = np.stack([logits, *occluded])
        if not np.isfinite(all_logits).all():
            raise UserError(
                f"{name}: the model's outputs are not finite: its training diverged; take the "
                "checkpoint of an earlier step"
            )
        multi_label = self.record.config.train.multi_label
        probabilities = np.asarray((jax.nn.sigmoid if multi_label else jax.nn.softmax)(all_logits))
        best = int(logits.argmax())
        odds, predicted = log_odds(all_logits, best, multi_label), probabilities[:, best]
        after = self.record.config.model.compression.compresses_after
        blends = (np.asarray(step.weights)[0] for step in trace.steps if isinstance(step, Blend))
        size = dataclasses.replace(self.record.backbone.size, resolution=self.record.config.data.resolution)
        names = ["class token"] * size.class_token
        names += [f"register {number}" for number in range(1, size.registers + 1)]
        return Explanation(
            frames=clip,
            numbers=numbers,
            seconds=seconds,
            labels=self.record.dataset.labels,
            logits=logits,
            probabilities=probabilities[0],
            prefix=tuple(names),
            grid=size.grid,
            layers=tuple(Layer(*pair) for pair in zip(after, blends, strict=True)),
            shares=attribution.shares(trace),
            rollout=attribution.rollout(trace),
            places=attribution.places(trace),
            log_odds_effects=odds[0] - odds[1:],
            probability_effects=predicted[0] - predicted[1:],
        )


def log_odds(logits: Float[np.ndarray, "B K"], label: int, multi_label: bool) -> Float[np.ndarray, " B"]:
    """Compute log(p / (1 - p)) for the probability p of class `label`, by softmax or else by sigmoid.

    It differs from the softmax's logit in that it stays when all logits rise alike, as the probability does.
    """
    own, others = logits[:, label], np.delete(logits, label, axis=1)
    return own if multi_label or not others.shape[1] else own - scipy.special.logsumexp(others, axis=1)


def occluded_logits(model: VideoModel, clip: UInt8[Array, "T H W 3"]) -> Float[Array, "T K"]:
    """Compute the logits of a clip with each frame in turn taken away.

    The frame before it takes its place, for the first frame the one after it. So the model sees real frames
    alone, and a frame that shows no more than its neighbour has no effect.
    """
    frames = jnp.arange(len(clip))
    neighbours = jnp.where(frames > 0, frames - 1, min(1, len(clip) - 1))

    def without(frame: Int[Array, ""]) -> Float[Array, " K"]:
        return model(clip.at[frame].set(clip[neighbours[frame]])[None])[0]

    return jax.lax.map(without, frames)


def explain(
    path: str | Path,
    video: Any,
    *,
    pretrained: str | Path | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
) -> Explanation:
    """Explain the answer of a run's model on one video; see `Explanation` for the arrays.

    `video` is uint8 `[T, H, W, 3]`, T a multiple of the model's `ratio`, or a path. The other arguments are
    those of `inti_jax.load`. To explain several videos, keep an `Explainer`. Raises UserError as the two do.

    Example:
        >>> import inti_jax, numpy
        >>> found = inti_jax.explain("runs/mine", numpy.zeros((8, 240, 320, 3), numpy.uint8))
        >>> [layer.weights.shape[-1] for layer in found.layers]  # one InTI layer, on pairs of frames
        [2]
        >>> found.frame_shares.shape  # the share of each frame's patches in the answer
        (8,)
    """
    return Explainer(load(path, pretrained=pretrained, step=step, weights=weights))(video)
