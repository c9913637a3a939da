"""Order the clips of training and evaluation, and load them as batches.

All randomness is a function of (seed, epoch, index, repeat). The videos of step s are a function of the seed
and s. So the batch of a step does not depend on the number of hosts, worker processes or threads, nor on the
step at which the run was started or resumed.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt8

from inti_jax import config
from inti_jax.data import balance, sampling
from inti_jax.data.augmentation import augment, opposites
from inti_jax.data.codec import decode
from inti_jax.data.dataset import Example, FileDataset, LabelledSource, MultiLabelSource, Source, multi_hot
from inti_jax.data.loading import batches
from inti_jax.data.loading.workers import Workers

log = logging.getLogger("inti_jax")


class TrainBatch(TypedDict):
    """This host's part of a training step's batch.

    A mirrored or reversed clip has the label of what it shows, see `opposites`. A row whose video did not
    decode has zeros as its video and False as its `mask`. If not even its record could be read, its label
    is -1. In a dataset with several labels a video, `label` is True for those of each video.
    """

    video: UInt8[np.ndarray, "b T H W 3"]
    label: Int32[np.ndarray, " b"] | Bool[np.ndarray, "b K"]
    mask: Bool[np.ndarray, " b"]
    index: Int32[np.ndarray, " b"]


class EvalBatch(TypedDict):
    """This host's part of an evaluation batch.

    V is clips x crops, clip by clip. `mask` marks a video that decoded, `missing` one that did not. Rows
    that pad the last batch have neither, and index -1. Batches of a FileDataset have `found`: the VideoInfo
    of each video, or the DecodeError.
    """

    video: UInt8[np.ndarray, "b V T H W 3"]
    label: Int32[np.ndarray, " b"] | Bool[np.ndarray, "b K"]
    mask: Bool[np.ndarray, " b"]
    missing: Bool[np.ndarray, " b"]
    index: Int32[np.ndarray, " b"]
    found: NotRequired[np.ndarray]


class TrainOrder:
    """The order in which a host loads training clips, by (epoch, index, repeat).

    For a host with b rows, element k is row k % b of step k // b. Over all rows of a batch and step by step,
    each epoch is a permutation of the dataset. A step may straddle two epochs, so no video is dropped.

    With `repeats`, a step's batch lists its videos that many times, and `repeat` is the number of the pass.
    One whole pass follows the other, so neighbours are never of one video.

    With `balanced`, its epochs replace the permutations. A video that comes again in an epoch has other
    values of `repeat` than before.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        global_batch: int,
        num_steps: int,
        repeats: int = 1,
        rows: Sequence[int] | None = None,
        balanced: balance.Balanced | None = None,
    ):
        """Take `rows` of each batch as this host's, by default all."""
        self._size = size
        self._seed = seed
        self._repeats = repeats
        self._balanced = balanced
        self._videos = global_batch // repeats
        self._num_steps = num_steps
        self.rows = range(global_batch) if rows is None else rows

    def __len__(self) -> int:
        return self._num_steps * len(self.rows)

    def __getitem__(self, k: int) -> tuple[int, int, int]:
        step, place = divmod(k, len(self.rows))
        repeat, video = divmod(self.rows[place], self._videos)
        epoch, place = divmod(step * self._videos + video, self._size)
        if self._balanced is None:
            return epoch, int(_permutation(self._size, self._seed, epoch)[place]), repeat
        videos = self._balanced.epoch(epoch)
        return epoch, int(videos.video[place]), int(videos.again[place]) * self._repeats + repeat


class EvalOrder:
    """The order in which a host loads evaluation videos, by index.

    For a host with b rows, element k is row k % b of batch k // b. Past the dataset it is -1.
    """

    def __init__(self, size: int, *, global_batch: int, rows: Sequence[int] | None = None):
        """Take `rows` of each batch as this host's, by default all."""
        self._size = size
        self._global_batch = global_batch
        self.rows = range(global_batch) if rows is None else rows

    def __len__(self) -> int:
        return -(-self._size // self._global_batch) * len(self.rows)

    def __getitem__(self, k: int) -> int:
        batch, place = divmod(k, len(self.rows))
        index = batch * self._global_batch + self.rows[place]
        return index if index < self._size else -1


class TrainBatches(Iterator[TrainBatch]):
    """The training batches of a run, loaded ahead in the background; made by `train_batches`.

    Close it, or use it as a context manager, to stop the loading threads and processes. A process that dies
    is replaced. Where that does not help, asking for a batch raises LoadingError.
    """

    def __init__(self, loaded_from: Callable[[int], batches.Batches]):
        """Load by `loaded_from`, which returns the batches from a given step on."""
        self._loaded_from = loaded_from
        self._batches = loaded_from(0)

    def __next__(self) -> TrainBatch:
        return next(self._batches)

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with step `state["next_step"]`; call this in the thread that iterates."""
        self.close()
        self._batches = self._loaded_from(state["next_step"])

    def close(self) -> None:
        """Stop the loading, from any thread; a thread that waits for a batch gets LoadingError."""
        self._batches.close()

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    dataset: LabelledSource,
    cfg: config.Data,
    *,
    seed: int,
    global_batch: int,
    num_steps: int,
    rows: Sequence[int] | None = None,
    classes: Int[np.ndarray, " N"] | None = None,
    workers: Workers | None = None,
) -> TrainBatches:
    """Load one host's training batches of steps 0 to `num_steps` - 1.

    `rows` of each batch are this host's, by default all. With `classes`, the class of each video, all classes
    come equally often, see `balance.Balanced`. If `workers` are given, they load the rows. Otherwise the
    batches start processes or threads of their own. Raises UserError if `cfg.flip` or `cfg.reverse` is set
    and the labels do not allow it.
    """
    order = TrainOrder(
        len(dataset),
        seed=seed,
        global_batch=global_batch,
        num_steps=num_steps,
        repeats=cfg.repeats,
        rows=rows,
        balanced=None if classes is None else balance.Balanced(classes, seed),
    )
    load = functools.partial(_load_train, dataset, cfg, seed, opposites.find(dataset.labels, cfg))
    return TrainBatches(
        lambda step: batches.Batches(order, load, cfg, _shape(cfg), first=step, workers=workers)
    )


def eval_batches(
    dataset: Source,
    cfg: config.Data,
    eval_cfg: config.Eval,
    *,
    rows: Sequence[int] | None = None,
    workers: Workers | None = None,
) -> batches.Batches:
    """Load one host's evaluation batches, each an EvalBatch.

    `rows` of each batch are this host's, by default all. Every host has the same number of batches, and over
    all rows every video comes exactly once. If `workers` are given, they load the rows, as in training. The
    caller closes the result. Raises LoadingError as TrainBatches does.
    """
    order = EvalOrder(len(dataset), global_batch=eval_cfg.batch, rows=rows)
    load = functools.partial(_load_eval, dataset, cfg, eval_cfg)
    views = eval_cfg.clips * eval_cfg.crops
    return batches.Batches(order, load, cfg, (views, *_shape(cfg)), workers=workers)


def view_indices(total: int, cfg: config.Data, eval_cfg: config.Eval) -> Int64[np.ndarray, " n"]:
    """Return the indices of the frames that are evaluated of a video with `total` frames.

    They are those of its `eval_cfg.clips` clips, clip by clip.
    """
    clips = [
        sampling.clip_indices(
            total,
            num_frames=cfg.num_frames,
            sampling=cfg.sampling,
            stride=cfg.stride,
            clip=clip,
            clips=eval_cfg.clips,
        )
        for clip in range(eval_cfg.clips)
    ]
    return np.concatenate(clips)


def load_views(example: Example, cfg: config.Data, eval_cfg: config.Eval) -> UInt8[np.ndarray, "V T H W 3"]:
    """Decode the evaluation views of one video: `eval_cfg.clips` x `eval_cfg.crops`, clip by clip.

    Raises DecodeError.
    """
    frames = example.frames_at(view_indices(example.frames, cfg, eval_cfg))
    crops = augment.test_views(frames, cfg.height_width, crops=eval_cfg.crops)
    # [crops, clips * T, H, W, 3] to [clips * crops, T, H, W, 3]
    shape = (eval_cfg.crops, eval_cfg.clips, cfg.num_frames, *crops.shape[2:])
    return np.moveaxis(crops.reshape(shape), 0, 1).reshape(-1, *shape[2:])


def _load_train(
    dataset: Source,
    cfg: config.Data,
    seed: int,
    exchanged: opposites.Opposites,
    element: tuple[int, int, int],
) -> dict[str, Any]:
    """Load the row of `element`, an (epoch, index, repeat)."""
    epoch, index, repeat = element
    row: dict[str, Any] = {
        "video": np.zeros(_shape(cfg), np.uint8),
        "label": _label(dataset, ()),
        "mask": np.bool_(False),
        "index": np.int32(index),
    }
    rng = np.random.default_rng((seed, epoch, index, repeat) if repeat else (seed, epoch, index))
    try:
        example = dataset[index]
        row["label"] = _label(dataset, example.label)
        indices = sampling.clip_indices(
            example.frames, num_frames=cfg.num_frames, sampling=cfg.sampling, stride=cfg.stride, rng=rng
        )
        labels = example.label if isinstance(example.label, tuple) else (example.label,)
        row["video"], labels = _augment(example.frames_at(indices), labels, rng, cfg, exchanged)
        row["label"] = _label(dataset, labels)
        row["mask"] = np.bool_(True)
    except decode.DecodeError as error:
        _say_masked(index, str(error))  # the video is not replaced, so that no other shifts
    return row


def _augment(
    frames: UInt8[np.ndarray, "T H W 3"],
    labels: tuple[int, ...],
    rng: np.random.Generator,
    cfg: config.Data,
    exchanged: opposites.Opposites,
) -> tuple[UInt8[np.ndarray, "T h w 3"], tuple[int, ...]]:
    """Augment the frames of a clip; return them and the labels that the clip has now."""
    may_flip = all(label in exchanged.mirrored for label in labels)
    clip = augment.train_clip(frames, rng, cfg, may_flip=may_flip)
    if clip.mirrored:
        labels = tuple(exchanged.mirrored[label] for label in labels)
    # The last draw, so it moves no other. All steps above treat all frames alike, so it may come after them.
    backwards = rng.random() < 0.5
    if not (cfg.reverse and backwards and all(label in exchanged.reversed for label in labels)):
        return clip.frames, labels
    return np.ascontiguousarray(clip.frames[::-1]), tuple(exchanged.reversed[label] for label in labels)


@functools.cache  # so it warns once in each process
def _say_masked(index: int, reason: str) -> None:
    log.warning("video %d of the training split is masked: %s", index, reason)


def _load_eval(dataset: Source, cfg: config.Data, eval_cfg: config.Eval, index: int) -> dict[str, Any]:
    shape = (eval_cfg.clips * eval_cfg.crops, *_shape(cfg))
    row: dict[str, Any] = {
        "video": np.zeros(shape, np.uint8),
        "label": _label(dataset, ()),
        "mask": np.bool_(False),
        "missing": np.bool_(index >= 0),
        "index": np.int32(index),
    }
    found: decode.VideoInfo | decode.DecodeError | None = None
    if index >= 0:
        try:
            example = dataset[index]
            row["label"] = _label(dataset, example.label)
            row["video"] = load_views(example, cfg, eval_cfg)
            row["mask"], row["missing"] = np.bool_(True), np.bool_(False)
            found = example.info
        except decode.DecodeError as error:
            found = error  # the video is never replaced: it stays counted as missing
    if isinstance(dataset, FileDataset):
        row["found"] = np.array(found, object)
    return row


def _label(dataset: Source, label: int | tuple[int, ...]) -> np.int32 | Bool[np.ndarray, " K"]:
    """Make a row's label of that of an example, or of () for a video whose record cannot be read."""
    labels = label if isinstance(label, tuple) else (label,)
    if isinstance(dataset, MultiLabelSource) and dataset.multi_label:
        return multi_hot(labels, len(dataset.labels))
    return np.int32(labels[0] if labels else -1)


def _shape(cfg: config.Data) -> tuple[int, int, int, int]:
    """Return the shape of a clip."""
    return cfg.num_frames, *cfg.height_width, 3


@functools.lru_cache(maxsize=2)  # a step touches two epochs at most, unless an epoch is shorter than a step
def _permutation(size: int, seed: int, epoch: int) -> Int32[np.ndarray, " {size}"]:
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
