"""A trained run as a function from videos to logits: `inti_jax.load(DIR)`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from inti_jax import checkpoint, sharding, state, trained
from inti_jax.config import Config
from inti_jax.data import augment
from inti_jax.errors import UserError
from inti_jax.models.video import VideoModel
from inti_jax.paths import local_path
from inti_jax.state import Params


class VideoClassifier:
    """A trained model on one device. `labels[k]` names logit k."""

    def __init__(
        self, graphdef: nnx.GraphDef[VideoModel], params: Params, config: Config, labels: tuple[str, ...]
    ):
        self.config = config
        self.labels = labels
        self._params = params
        self._logits = jax.jit(lambda params, video: state.merge(graphdef, params)(video))
        self._features = jax.jit(lambda params, video: state.merge(graphdef, params).features(video))

    def __call__(self, video: np.ndarray) -> Float[np.ndarray, "*B K"]:
        """Logits for one clip, uint8 `[T, H, W, 3]`, or several `[B, T, H, W, 3]`, RGB of any size.

        T is any number of frames the compressors can halve; frames are resized and cropped to the centre
        as in evaluation. Raises UserError for another shape or type.
        """
        return self._apply(self._logits, video)

    def features(self, video: np.ndarray) -> Float[np.ndarray, "*B D"]:
        """What the classifier's last layer sees: the mean of the frames' normalised class tokens."""
        return self._apply(self._features, video)

    def _apply(self, function: Any, video: np.ndarray) -> Float[np.ndarray, "..."]:
        halvings = 2 ** len(self.config.model.compression.halves_after)
        if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3:
            raise UserError(
                f"a video is uint8 [T, H, W, 3] or [B, T, H, W, 3], not {video.dtype} {list(video.shape)}"
            )
        if video.shape[-4] == 0 or video.shape[-4] % halvings:
            raise UserError(f"this model takes a multiple of {halvings} frames, not {video.shape[-4]}")
        clips = video[None] if video.ndim == 4 else video
        size = self.config.data.resolution
        cropped = np.stack([augment.test_views(clip, resolution=size, crops=1)[0] for clip in clips])
        result = np.asarray(function(self._params, cropped))
        return result[0] if video.ndim == 4 else result


def load(
    path: str | Path, *, pretrained: str | Path | None = None, step: checkpoint.Step = None
) -> VideoClassifier:
    """The classifier that a run trained: its directory, or a file that `convert --to trained` wrote.

    Of a run it is the newest checkpoint, that of `step`, or with "best" the best of those that were
    evaluated. A file goes on the converted CLIP `pretrained`, by default the one that the run named. What can
    be folded into the backbone is. Raises UserError where `path` holds no finished checkpoint, or the two do
    not belong together.
    """
    mesh = sharding.one_device_mesh()
    weights = None if pretrained is None else local_path(pretrained)
    found = trained.load(local_path(path), mesh, pretrained=weights, step=step)
    graphdef, params = found.for_inference()
    return VideoClassifier(graphdef, params, found.record.config, found.record.dataset.labels)
