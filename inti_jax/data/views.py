"""Check that the views of an evaluation differ: a repeated view costs time and changes nothing."""

import functools
import logging

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.data import manifest, pipeline
from inti_jax.data.augmentation import crops
from inti_jax.data.dataset import VideoDataset

log = logging.getLogger("inti_jax")


def check(dataset: VideoDataset, data: config.Data, settings: config.Eval) -> None:
    """Raise ConfigError if clips, or crops, repeat each other in every video; warn if they do in some."""
    videos = manifest.read(dataset.directory).splits[dataset.split].videos

    @functools.cache
    def repeats(frames: int) -> bool:
        clips = pipeline.view_indices(frames, data, settings).reshape(settings.clips, -1)
        return len({clip.tobytes() for clip in clips}) < settings.clips

    def whole(height: int, width: int) -> bool:
        """Tell whether a crop is the whole frame."""
        return crops.largest(height, width, data.height_width) == (height, width)

    kinds = {
        f"`eval.clips` is {settings.clips}": sum(repeats(video.frames) for video in videos),
        f"`eval.crops` is {settings.crops}": (settings.crops > 1)
        * sum(whole(video.height, video.width) for video in videos),
    }
    for setting, count in kinds.items():
        if count == len(videos):
            raise ConfigError(
                f"config: {setting}, but all views are the same: every video of `{dataset.split}` in "
                f"{dataset.directory} is too short, or has the shape of `data.resolution`. Set it to 1"
            )
        if count:
            log.warning("%s: in %d of %d videos some views are the same", setting, count, len(videos))
