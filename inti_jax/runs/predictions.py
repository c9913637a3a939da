"""Keep the predictions of a run's evaluations: one NumPy archive for each evaluated step and setting.

docs/predictions.md describes the files. They are kept as long as the checkpoints of their steps, see
`prune`.
"""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int, Int32

from inti_jax.errors import UserError
from inti_jax.host import archives
from inti_jax.runs import evaluations, layout
from inti_jax.runs.evaluations import Setting, Step, Weights
from inti_jax.runs.record import RunRecord

VERSION = 1

# As a zip's compression level. Higher ones take three times as long, and spare one per cent.
_LEVEL = 1
# Videos whose views are rounded at a time, so that no second float32 array of all of them is made.
_BLOCK = 1024

_ANEW = "`python -m inti_jax.main --mode eval` writes it anew"

_NAME = re.compile(r"(0|[1-9]\d*)-([1-9]\d*)x([1-9]\d*)-(raw|ema)-(\w{1,8})\.npz")

# The arrays of a file, `views` apart, with their kinds of type and numbers of dimensions.
_ARRAYS = {
    "format_version": ("i", 0),
    "dataset": ("U", 0),
    "dataset_sha256": ("U", 0),
    "split": ("U", 0),
    "step": ("i", 0),
    "weights": ("U", 0),
    "clips": ("i", 0),
    "crops": ("i", 0),
    "classes": ("U", 1),
    "ids": ("U", 1),
    "index": ("i", 1),
    "labels": ("ib", (1, 2)),
    "probabilities": ("f", 2),
    "frames": ("i", 3),
    "position": ("f", 1),
    "missing": ("U", 1),
}


class Place(NamedTuple):
    """The key of a file among those of a run; `dataset` is the start of the dataset's hash."""

    step: int
    clips: int
    crops: int
    weights: Weights
    dataset: str

    @staticmethod
    def of(step: int, setting: Setting) -> "Place":
        """Make the place of an evaluation of `step` under `setting`, which has views and a dataset."""
        if setting.views is None or setting.clips is None or setting.dataset is None:
            raise ValueError(f"{setting} does not say its views or its dataset")
        crops = setting.views // setting.clips
        return Place(step, setting.clips, crops, setting.weights, setting.dataset[:8])

    def path(self, workdir: Path) -> Path:
        """Return the path of the file in a run's directory."""
        name = f"{self.step}-{self.clips}x{self.crops}-{self.weights}-{self.dataset}.npz"
        return layout.predictions_dir(workdir) / name


@dataclasses.dataclass(frozen=True)
class SavedPredictions:
    """The predictions of one evaluation, in the order of the dataset. M videos decoded, L are missing.

    V views are `clips` x `crops`, clip by clip. The probabilities of single views are read apart, by
    `read_views`, since they are large.
    """

    dataset: str  # its name
    sha256: str  # the hash in its manifest
    split: str
    step: int
    weights: Weights
    clips: int
    crops: int
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    index: Int32[np.ndarray, " M"]  # of the video in its split
    labels: Int32[np.ndarray, " M"] | Bool[np.ndarray, "M K"]  # classes; or True for all labels of a video
    probabilities: Float32[np.ndarray, "M K"]  # the mean over the views, as the run's figures are made of
    frames: Int32[np.ndarray, "M V 2"]  # the first and the last frame of each view, from 0
    missing: tuple[str, ...]  # the ids of the videos that did not decode

    @property
    def multi_label(self) -> bool:
        """True where videos have several labels, and the probabilities are sigmoids."""
        return self.labels.ndim == 2

    @property
    def setting(self) -> Setting:
        """The setting of the evaluation."""
        return Setting(self.clips * self.crops, self.clips, self.sha256, self.weights)

    @property
    def place(self) -> Place:
        """The key of its file among those of the run."""
        return Place.of(self.step, self.setting)


def rounded(views: Float32[np.ndarray, "M V K"]) -> Float16[np.ndarray, "M V K"]:
    """Round probabilities to float16 with 9 significant bits, which is to 0.2 % of each.

    Below 2^-14 (6.1e-5), where float16 has fewer bits, it is to a multiple of 2^-22, by 1.2e-7 at most.
    """
    result = np.empty(views.shape, np.float16)
    for start in range(0, len(views), _BLOCK):
        block = views[start : start + _BLOCK].copy()
        small = block < 2**-14
        np.add(block, 2, out=block, where=small)  # the last bit of a float32 from 2 to 4 is 2^-22
        np.subtract(block, 2, out=block, where=small)
        bits = block.view(np.uint32)
        bits += np.uint32(1 << 14)  # half of the last bit that is kept
        bits &= np.uint32(0xFFFF8000)
        result[start : start + _BLOCK] = block
    return result


def write(workdir: Path, saved: SavedPredictions, views: Float32[np.ndarray, "M V K"]) -> Path:
    """Write the file of an evaluation as a whole or not at all, in place of an earlier one of the same place.

    Only process 0 of a run should call it, while it holds the run's lock. Raises OSError, with the file's
    name, where it cannot be written.
    """
    path = saved.place.path(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.npz.partial"):  # by a kill
        left.unlink(missing_ok=True)
    crop = np.arange(saved.crops) / (saved.crops - 1) if saved.crops > 1 else np.array([0.5])
    arrays: dict[str, Any] = {
        "format_version": np.int64(VERSION),
        "dataset": np.str_(saved.dataset),
        "dataset_sha256": np.str_(saved.sha256),
        "split": np.str_(saved.split),
        "step": np.int64(saved.step),
        "weights": np.str_(saved.weights),
        "clips": np.int64(saved.clips),
        "crops": np.int64(saved.crops),
        "classes": np.asarray(saved.classes, np.str_),
        "ids": np.asarray(saved.ids, np.str_),
        "index": saved.index,
        "labels": saved.labels,
        "probabilities": saved.probabilities,
        "frames": saved.frames,
        "position": np.tile(crop.astype(np.float32), saved.clips),
        "missing": np.asarray(saved.missing, np.str_),
    }
    with archives.written(path, level=_LEVEL) as archive:
        for name, array in arrays.items():
            archives.add(archive, name, np.asarray(array))
        archives.add(archive, "views", rounded(views))
    return path


def read(path: Path) -> SavedPredictions:
    """Read and check all of a file but the views. Raises UserError where it is damaged or no such file."""
    arrays = archives.read(path, _ARRAYS)
    try:
        return _checked(arrays)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} holds no predictions that can be used ({error}): {_ANEW}") from None


def read_views(path: Path) -> Float16[np.ndarray, "M V K"]:
    """Read the probabilities of the single views. Raises UserError as `read`, or where they do not fit."""
    saved, views = read(path), archives.read(path, ["views"])["views"]
    shape = (len(saved.ids), saved.clips * saved.crops, len(saved.classes))
    if views.dtype != np.float16 or views.shape != shape:
        raise UserError(f"{path} holds views of {views.dtype} {views.shape}, not float16 {shape}: {_ANEW}")
    if not _are_probabilities(views):
        raise UserError(f"{path} holds views that are no probabilities: {_ANEW}")
    return views


def select(workdir: Path, step: Step = None, weights: Weights | None = None) -> Path:
    """Find the predictions of a run's own evaluation, see `evaluations.Setting`.

    They are those of the newest step that has them, of `step`, or with "best" those of the best step.
    `weights` are by default those that the run is judged by. Raises UserError where there are none, and
    ConfigError where `workdir` is not a run's directory.
    """
    own = Setting.of_run(RunRecord.read(workdir))
    wanted = own if weights is None else dataclasses.replace(own, weights=weights)
    found = find(workdir)
    steps = [place.step for place in found if place == Place.of(place.step, wanted)]
    if step == "best":
        figures = evaluations.by_step(evaluations.read(workdir), wanted)
        rated = [each for each in steps if each in figures]
        chosen = max(rated, key=lambda each: (figures[each].best_by, each), default=None)
    else:
        chosen = max((each for each in steps if step in (None, each)), default=None)
    if chosen is None:
        of_step = "" if step is None else f" of step {step}" if step != "best" else " of an evaluated step"
        others = ", ".join(path.name for path in found.values()) or "none"
        raise UserError(
            f"{workdir} keeps no predictions{of_step} with its own views and dataset and the "
            f"{wanted.weights} weights (it has: {others}): run `python -m inti_jax.main --mode eval` on it"
        )
    return Place.of(chosen, wanted).path(workdir)


def find(workdir: Path) -> dict[Place, Path]:
    """Map the place of each file of a run to its path, in ascending order of steps."""
    directory = layout.predictions_dir(workdir)
    found = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            step, clips, crops, weights, dataset = match.groups()
            kind: Weights = "ema" if weights == "ema" else "raw"
            found[Place(int(step), int(clips), int(crops), kind, dataset)] = path
    return dict(sorted(found.items()))


def prune(workdir: Path, kept: Collection[int]) -> None:
    """Delete the files of steps that are not in `kept`, those of step 0 apart.

    `kept` are the steps with a checkpoint. Step 0 is the start of a run, which is evaluated without one.
    """
    for place, path in find(workdir).items():
        if place.step != 0 and place.step not in kept:
            path.unlink(missing_ok=True)


def _checked(arrays: dict[str, np.ndarray]) -> SavedPredictions:
    """Make the record of a file's arrays. Raises ValueError where they contradict each other."""
    for name, (kinds, dimensions) in _ARRAYS.items():
        array = arrays[name]
        wanted = dimensions if isinstance(dimensions, tuple) else (dimensions,)
        if array.dtype.kind not in kinds or array.ndim not in wanted:
            raise ValueError(f"`{name}` is {array.dtype} of {array.ndim} dimensions")
    if (version := int(arrays["format_version"])) != VERSION:
        raise ValueError(f"its format has version {version}, and this is version {VERSION}")
    ids, missing, classes = (tuple(arrays[name].tolist()) for name in ("ids", "missing", "classes"))
    clips, crops, step = (int(arrays[name]) for name in ("clips", "crops", "step"))
    labels, probabilities, frames = (arrays[name] for name in ("labels", "probabilities", "frames"))
    weights = str(arrays["weights"])
    if min(clips, crops) < 1 or step < 0 or weights not in ("raw", "ema"):
        raise ValueError(f"step {step}, {clips} x {crops} views and `{weights}` weights are impossible")
    if len(set(classes)) != len(classes):
        raise ValueError("a class occurs twice")
    videos, views = len(ids), clips * crops
    shapes = {
        "index": (videos,),
        "labels": (videos,) if labels.ndim == 1 else (videos, len(classes)),
        "probabilities": (videos, len(classes)),
        "frames": (videos, views, 2),
        "position": (views,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"`{name}` has the shape {arrays[name].shape} instead of {shape}")
    if (labels.ndim == 2) != (labels.dtype == bool) or probabilities.dtype != np.float32:
        raise ValueError(f"labels are {labels.dtype}, probabilities {probabilities.dtype}")
    if labels.ndim == 1 and not _within(labels, len(classes)):
        raise ValueError(f"a label is none of the {len(classes)} classes")
    index = arrays["index"]
    if not _within(index, videos + len(missing)) or (np.diff(index) <= 0).any() or not _within(frames, 2**31):
        raise ValueError("an index or a frame is out of range, or indices are out of order")
    if not _are_probabilities(probabilities):
        raise ValueError("there are numbers that are no probabilities")
    return SavedPredictions(
        dataset=str(arrays["dataset"]),
        sha256=str(arrays["dataset_sha256"]),
        split=str(arrays["split"]),
        step=step,
        weights="ema" if weights == "ema" else "raw",
        clips=clips,
        crops=crops,
        classes=classes,
        ids=ids,
        index=index.astype(np.int32),
        labels=labels if labels.ndim == 2 else labels.astype(np.int32),
        probabilities=probabilities,
        frames=frames.astype(np.int32),
        missing=missing,
    )


def _within(numbers: Int[np.ndarray, "..."], end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


def _are_probabilities(numbers: np.ndarray) -> bool:
    """Tell whether all numbers are from 0 to 1, but for rounding; NaN is not."""
    # By the extremes, which take no memory. They are NaN where a number is.
    return not numbers.size or bool(numbers.min() >= 0 and numbers.max() <= 1.001)
