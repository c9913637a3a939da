"""Run a trained model on video files, with the sampling, decoding and views of its evaluation."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int64, UInt8

from inti_jax import config
from inti_jax.data import pipeline, sampling
from inti_jax.data.codec.decode import DecodeError, VideoInfo
from inti_jax.data.dataset import FileDataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate
from inti_jax.evaluation.evaluate import Output
from inti_jax.hub.names import Place
from inti_jax.runs import checkpoint, trained, trained_file, zero_shot
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.progress import Progress

log = logging.getLogger("inti_jax")

_SAY_SECONDS = 60  # between progress lines, where no terminal shows a bar
_MANY = 64  # files that are worth the start of worker processes


def load_model(
    place: Place,
    mesh: jax.sharding.Mesh,
    *,
    pretrained: Place | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
    labels: Sequence[str] | None = None,
) -> trained.Trained:
    """Load a trained model as `trained.load`, with `labels` for those classes instead of the run's.

    Then `pretrained` may also say where the CLIP of a run's directory is, see `zero_shot.with_labels`.
    """
    path = trained_file.locate(place)
    own_weights = labels is not None and (path.is_dir() or trained_file.is_whole(path))
    found = trained.load(
        path, mesh, pretrained=None if own_weights else pretrained, step=step, weights=weights
    )
    if labels is None:
        return found
    record, params = zero_shot.with_labels(found.record, found.params, labels, pretrained=pretrained)
    return dataclasses.replace(found, record=record, params=params)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The values that a model computed for one video, or the reason why there are none."""

    path: Path
    info: VideoInfo | None
    values: Float[np.ndarray, "V ..."] | None  # views clip by clip, and crop by crop in each clip
    error: str = ""


class FileModel:
    """A trained model on one device, as a function from video files to values."""

    def __init__(
        self,
        place: Place,
        output: Output | None = None,
        *,
        pretrained: Place | None = None,
        step: checkpoint.Step = None,
        weights: Weights | None = None,
        clips: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        """Load a run's checkpoint.

        `output` computes values from the model and one view, by default the probabilities that the run's
        evaluation averages. With `clips`, that many are taken of a video instead of the run's own number.
        For the others see `load_model`.
        """
        self._mesh = sharding.one_device_mesh()
        found = load_model(
            place, self._mesh, pretrained=pretrained, step=step, weights=weights, labels=labels
        )
        graphdef, self._params = found.for_inference()
        self.record: RunRecord = found.record
        output = output or evaluate.output_of(found.record.config.train)
        self._forward = evaluate.make_forward(graphdef, self._mesh, output)
        # Not the training's number of workers: this may be another machine.
        self.data: config.Data = dataclasses.replace(found.record.config.data, workers=-1)
        self.settings: config.Eval = found.record.config.eval
        if clips is not None:
            self.settings = dataclasses.replace(self.settings, clips=clips)

    def __call__(self, paths: Sequence[Path], *, progress: str = "") -> Generator[Outcome, None, None]:
        """Yield an outcome for each path, in order, in memory that does not grow with their number.

        Outcomes come in batches of the run's `eval.batch`. Many files are decoded by worker processes where
        the model is on an accelerator, and else by threads. `progress` is the name of a progress bar; without
        it there is none. Raises UserError where the model's outputs are not finite.
        """
        data = self.data if len(paths) >= _MANY else dataclasses.replace(self.data, workers=0)
        settings = dataclasses.replace(self.settings, batch=min(self.settings.batch, len(paths)))
        source = FileDataset(paths, functools.partial(pipeline.view_indices, cfg=data, eval_cfg=settings))
        batches = evaluate.forward_batches(self._forward, self._params, source, data, settings, self._mesh)
        missing, said = 0, time.monotonic()
        with contextlib.closing(batches), contextlib.ExitStack() as stack:
            bar = None
            if progress:
                bar = stack.enter_context(contextlib.closing(Progress(progress, len(paths))))
            for rows in batches:
                for index, found, values in zip(rows["index"], rows["found"], rows["values"], strict=True):
                    if index < 0:  # padding of the last batch
                        continue
                    yield self._outcome(paths[index], found, values)
                    missing += isinstance(found, DecodeError)
                    if bar is not None:
                        bar.advance()
                if bar is not None and time.monotonic() - said > _SAY_SECONDS:
                    bar.show(f"{missing} missing")
                    said = time.monotonic()

    def values(self, views: UInt8[np.ndarray, "b V T H W 3"]) -> Float[np.ndarray, "b V ..."]:
        """Compute the values of videos whose views `pipeline.load_views` has cut, b of them at once.

        Each b compiles a program of its own.
        """
        zeros = np.zeros(len(views), np.int32)
        batch = {"video": views, "index": zeros, "label": zeros, "mask": zeros == 0, "missing": zeros != 0}
        found = self._forward(self._params, sharding.place_batch(batch, self._mesh))
        return np.asarray(jax.device_get(found["values"]))

    @property
    def width(self) -> int:
        """The number of values of a feature, D."""
        return self.record.backbone.size.width

    def frames_of_views(self, info: VideoInfo) -> Int64[np.ndarray, "clips T"]:
        """Return the frame numbers of each clip that is taken of a video."""
        return pipeline.view_indices(info.frames, self.data, self.settings).reshape(self.settings.clips, -1)

    def _outcome(self, path: Path, found: VideoInfo | DecodeError, values: np.ndarray) -> Outcome:
        if isinstance(found, DecodeError):
            return Outcome(path, None, None, str(found))
        if not np.isfinite(values).all():
            raise UserError(
                f"{path}: the model's outputs are not finite: its training diverged; take the "
                "checkpoint of an earlier step"
            )
        needed = sampling.span(self.data.num_frames, self.data.sampling, self.data.stride)
        if found.frames < needed:
            log.warning(
                "%s has only %d of the %d frames that a clip spans: some frames repeat or lie closer "
                "together",
                path,
                found.frames,
                needed,
            )
        return Outcome(path, found, values)
