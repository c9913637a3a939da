"""Load a trained run as a function from videos to logits: `inti_jax.load(DIR)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from inti_jax.data.augmentation import augment
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.hub import names
from inti_jax.models import in_memory, parameters
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.runs import checkpoint, state, trained, zero_shot
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord


class VideoClassifier:
    """A trained model on one device, as a function from videos to logits. `labels[k]` names logit k."""

    def __init__(self, graphdef: nnx.GraphDef[VideoModel], params: Params, record: RunRecord):
        """Take the model for inference, see `trained.Trained.for_inference`, and the record of its run."""
        self.config = record.config
        self.labels = record.dataset.labels
        self.record = record
        self.graphdef = graphdef
        self.params = params
        # The number of frames of a clip that become one: T is a multiple of it.
        self.ratio = parameters.merge(graphdef, params).ratio
        self._logits = jax.jit(lambda params, video: parameters.merge(graphdef, params)(video))
        self._features = jax.jit(lambda params, video: parameters.merge(graphdef, params).features(video))

    def __call__(self, video: Any) -> Float[np.ndarray, "*B K"]:
        """Compute the logits of one clip, uint8 `[T, H, W, 3]`, or of several, `[B, T, H, W, 3]`.

        Arrays may be NumPy's, JAX's or torch's, on any device. A list of frames (arrays, or Pillow's
        pictures) is one clip, and a list of clips is several. Frames are RGB of any size. A grey frame, with
        one channel, is copied to all three, and the opacity of RGBA is dropped, both as in decoding. T is a
        multiple of the model's `ratio`. Frames are resized and cropped to the centre as in evaluation. An
        empty batch, B = 0, gives no logits. For files use `inti_jax.predict`, which takes their frames as the
        evaluation does. Raises UserError for another shape or type.
        """
        return self._apply(self._logits, video)

    def features(self, video: Any) -> Float[np.ndarray, "*B D"]:
        """Compute the input of the last layer: the mean over frames of the normalised class tokens.

        Takes the same input as a call, and raises the same errors.
        """
        return self._apply(self._features, video)

    def with_labels(
        self,
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        pretrained: str | Path | None = None,
    ) -> "VideoClassifier":
        """Return this classifier for other classes, by their names alone: zero-shot classification.

        The head has to be a text head (`model.head.init="text"`). Its projection and scale stay as they were
        trained. The text tower of the run's CLIP encodes the names of `labels` in `templates`, by default the
        run's. `pretrained` says where that CLIP is, by default where the run found it. Raises UserError as
        `zero_shot.with_labels`.
        """
        weights = None if pretrained is None else names.place(pretrained)
        record, params = zero_shot.with_labels(
            self.record, self.params, labels, templates=templates, pretrained=weights
        )
        graphdef = nnx.graphdef(state.abstract_model(record, folded=True))
        return VideoClassifier(graphdef, params, record)

    def crop(self, video: Any) -> tuple[UInt8[np.ndarray, "B T H W 3"], bool]:
        """Resize and crop clips to what the model takes, from what a call takes.

        Also return True if `video` was several clips. Raises the errors of a call.
        """
        clips, several = in_memory.clips(video)
        for clip in clips:
            frames, height, width, _ = clip.shape
            if frames == 0 or frames % self.ratio:
                raise UserError(f"this model takes a multiple of {self.ratio} frames, not {frames}")
            if frames != len(clips[0]):
                raise UserError(
                    f"the videos of one call should have the same number of frames, not {len(clips[0])} and "
                    f"{frames}"
                )
            if height == 0 or width == 0:
                raise UserError(f"frames of {height} x {width} pixels show nothing")
        size = self.config.data.height_width
        if not clips:
            return np.zeros((0, self.ratio, *size, 3), np.uint8), several
        return np.stack([augment.test_views(clip, size, crops=1)[0] for clip in clips]), several

    def _apply(self, function: Any, video: Any) -> Float[np.ndarray, "..."]:
        clips, several = self.crop(video)
        if not len(clips):
            one = jax.ShapeDtypeStruct((1, *clips.shape[1:]), np.uint8)
            result = jax.eval_shape(function, self.params, one)
            return np.zeros((0, *result.shape[1:]), result.dtype)
        result = np.asarray(function(self.params, clips))
        return result if several else result[0]


def load(
    path: str | Path,
    *,
    pretrained: str | Path | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
) -> VideoClassifier:
    """Load the classifier that a run trained, from its directory or a file of `convert --to trained`.

    `path` may also be a shared model, as `convert --to hub` writes it: its directory, or its name on the
    Hugging Face Hub, `hf://org/name` or `hf://org/name@revision`.
    From a run it loads the newest checkpoint, that of `step`, or with "best" the best of those that were
    evaluated. `weights` is "raw" for the weights as the last step left them, or "ema" for their moving
    average, which is the default where the run has one (`train.ema`). A file is added to the CLIP weights
    `pretrained`, by default those that the run named, which are converted first where they are not yet. What
    can be folded into the backbone is folded. Raises UserError where `path` holds no finished checkpoint or
    no such `weights`, or the two do not belong together.

    Example:
        >>> import inti_jax, numpy
        >>> model = inti_jax.load("runs/mine")
        >>> logits = model(numpy.zeros((8, 240, 320, 3), numpy.uint8))
        >>> model.labels[logits.argmax()] in model.labels
        True
    """
    mesh = sharding.one_device_mesh()
    backbone = None if pretrained is None else names.place(pretrained)
    found = trained.load(names.local_or_uri(path), mesh, pretrained=backbone, step=step, weights=weights)
    graphdef, params = found.for_inference()
    return VideoClassifier(graphdef, params, found.record)
