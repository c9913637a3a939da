"""Log a run's size, its changes on resume and likely mistakes before it trains."""

import logging
import math

import jax
import numpy as np
from jaxtyping import Float

from inti_jax.config import Config
from inti_jax.config.backbones import called
from inti_jax.data import sampling
from inti_jax.data.dataset import VideoDataset
from inti_jax.models import freezing
from inti_jax.models.video import VideoModel
from inti_jax.runs.state import TrainState
from inti_jax.training import optim

log = logging.getLogger("inti_jax")


def describe(
    config: Config,
    model: VideoModel,
    target: TrainState,
    dataset: VideoDataset,
    mesh: jax.sharding.Mesh,
    steps: int,
) -> None:
    """Log the figures of the run that a user would otherwise have to work out."""
    trainable, frozen = (
        sum(math.prod(leaf.shape) for leaf in part.values()) for part in (target.trainable, target.frozen)
    )
    compression, changed = config.model.compression, freezing.summary(config.model)
    frames = config.data.num_frames
    log.info(
        "%s, %s, compression %s after %s: %.2f M parameters trained, %.2f M frozen; %.3f GMACs per view of "
        "%d frames",
        called(config.model.backbone, model.size),
        config.model.adaptation + (f" ({changed})" if changed else ""),
        compression.name,
        compression.after or "no block",
        trainable / 1e6,
        frozen / 1e6,
        model.macs(frames) / 1e9,
        frames,
    )
    log.info(
        "%s: %d videos, %d classes; %d steps of %d videos (%.1f epochs) on %d %s, mesh %s",
        config.data.name,
        len(dataset),
        len(dataset.labels),
        steps,
        config.train.global_batch,
        steps * config.train.global_batch / (len(dataset) * config.data.repeats),
        mesh.size,
        "device" if mesh.size == 1 else "devices",
        dict(mesh.shape),
    )


def imbalance(config: Config, dataset: VideoDataset, weights: Float[np.ndarray, " K"] | None) -> None:
    """Log what is done about classes of different sizes, if anything; `weights` are those in the loss."""
    if config.data.balance:
        present = len(np.unique(dataset.classes))
        log.info(
            "balanced classes: an epoch draws %.1f videos of each of %d classes",
            len(dataset) / present,
            present,
        )
    if weights is not None:
        low, high = int(weights.argmin()), int(weights.argmax())
        log.info(
            "class weights in the loss: from %.3g (%s) to %.3g (%s)",
            *(weights[low], dataset.labels[low], weights[high], dataset.labels[high]),
        )


def going_on(earlier: Config, config: Config, *, start: int, before: int, steps: int, random: bool) -> None:
    """Log what changes in a run of `earlier` that goes on after step `start` under `config`.

    The run had `before` steps in all and has `steps` now. `random` is True where the model draws random
    numbers in training.
    """
    log.info("resuming from the checkpoint of step %d", start)
    if before != steps:
        was, comes = (
            float(optim.make_schedule(settings.train, total)(step))
            for settings, total, step in ((earlier, before, start - 1), (config, steps, start))
        )
        log.info(
            "the run now has %d steps instead of %d: the learning rate was %.3g at step %d; from step %d "
            "on it follows the schedule of a run of %d steps, from %.3g there to %.3g at the end",
            *(steps, before, was, start, start + 1, steps, comes),
            config.train.end_rate * config.train.learning_rate,
        )
    if earlier.train.ema and not config.train.ema:
        log.info("`train.ema` is 0 now: the average of the weights ends with step %d", start)
    elif earlier.train.ema and earlier.train.ema != config.train.ema:
        log.info("`train.ema` is %g now instead of %g", config.train.ema, earlier.train.ema)
    if random and earlier.train.accumulate != config.train.accumulate:
        log.warning(
            "`train.accumulate` is now %d instead of %d: dropout and `model.drop_path` draw other numbers "
            "than in an uninterrupted run",
            config.train.accumulate,
            earlier.train.accumulate,
        )


def warn(config: Config, dataset: VideoDataset, validation: VideoDataset) -> None:
    """Warn of likely mistakes in how clips are sampled from these videos."""
    _warn_of_sampling(config, dataset)
    _warn_of_short_videos(config, dataset, validation)


def _warn_of_sampling(config: Config, dataset: VideoDataset) -> None:
    # The reverse is a choice: some of the published recipes for Kinetics sample uniformly.
    if dataset.manifest["sampling"] == "uniform" and config.data.sampling == "dense":
        log.warning(
            "`data.sampling` is dense, but the labels of %s describe whole videos: set "
            "`data.sampling=uniform`",
            config.data.name,
        )


def _warn_of_short_videos(config: Config, *datasets: VideoDataset) -> None:
    span = sampling.span(config.data.num_frames, config.data.sampling, config.data.stride)
    for dataset in datasets:
        if short := dataset.short(span):
            log.warning(
                "%d of the %d videos of `%s` are shorter than a clip (%d frames): their frames are repeated",
                short,
                len(dataset),
                dataset.split,
                span,
            )
