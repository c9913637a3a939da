"""Choose videos that say where a model fails, and show the frames that it saw of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from inti_jax.config import Config
from inti_jax.data import pipeline
from inti_jax.data.augmentation import augment
from inti_jax.data.codec.decode import DecodeError
from inti_jax.data.dataset import VideoDataset, open_dataset
from inti_jax.errors import UserError
from inti_jax.pages import pictures
from inti_jax.runs.predictions import SavedPredictions

# Videos of each group, frames of each, and bytes of all frames at most.
_EACH = 12
_FRAMES = 8
_MOST_BYTES = 3_000_000

_BEST = 5  # labels of a video
_LISTED = 25_000  # videos that can be searched

Group = Literal["worst", "unsure", "random"]


class Guess(NamedTuple):
    """A label with its probability."""

    label: str
    probability: float
    right: bool


@dataclasses.dataclass(frozen=True)
class Video:
    """One video: its labels, and the best guesses of the model, the most probable first.

    `strip` is a data URI of its frames in rows, and `said` what they are, or why there are none.
    """

    row: int  # in the predictions
    id: str
    labels: list[str]
    guesses: list[Guess]
    strip: str | None = None
    said: str = ""


class Listed(NamedTuple):
    """The best labels of each video, as flat lists, for the search in the page.

    `labels` and `best` are indices into `classes`, probabilities are in thousandths.
    """

    classes: list[str]
    ids: list[str]
    labels: list[list[int]]
    best: list[int]
    probabilities: list[int]
    each: int  # best labels of a video
    left_out: int  # videos, where there are too many


def best(probabilities: Float[np.ndarray, "M K"], count: int = _BEST) -> Int[np.ndarray, "M count"]:
    """Find the most probable classes of each video, in descending order; of equals the lower index first."""
    count = min(count, probabilities.shape[1])
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :count]


def choose(saved: SavedPredictions, each: int = _EACH) -> dict[Group, list[int]]:
    """Choose rows of predictions: the worst errors, the least sure answers, and some at random.

    The worst errors give the largest probability to a wrong label; where videos have several labels, they
    have the largest negative log-likelihood. Least sure are those whose two best labels are closest; with
    several labels, those whose answers have the largest entropy. No video is in two groups.
    """
    probabilities = saved.probabilities.astype(np.float64)
    if saved.multi_label:
        clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
        errors = -np.where(saved.labels, np.log(clipped), np.log(1 - clipped)).mean(axis=1)
        doubt = -(clipped * np.log(clipped) + (1 - clipped) * np.log(1 - clipped)).mean(axis=1)
        candidates = np.arange(len(errors))
    else:
        top = best(probabilities, 2)
        first, second = np.take_along_axis(probabilities, top[:, [0, -1]], axis=1).T
        errors, doubt = first, second - first
        candidates = np.flatnonzero(top[:, 0] != saved.labels)
    worst = candidates[np.argsort(-errors[candidates], kind="stable")][:each].tolist()
    unsure = [row for row in np.argsort(-doubt, kind="stable").tolist() if row not in set(worst)][:each]
    left = np.setdiff1d(np.arange(len(errors)), [*worst, *unsure])
    random = np.random.default_rng(0).permutation(left)[:each].tolist()
    return {"worst": worst, "unsure": unsure, "random": random}


def videos(saved: SavedPredictions, rows: Sequence[int]) -> list[Video]:
    """Describe the videos of some rows of predictions."""
    top = best(saved.probabilities[list(rows)])
    found = []
    for row, guesses in zip(rows, top.tolist(), strict=True):
        labels = np.flatnonzero(saved.labels[row]).tolist() if saved.multi_label else [int(saved.labels[row])]
        described = [
            Guess(saved.classes[guess], float(saved.probabilities[row, guess]), guess in labels)
            for guess in guesses
        ]
        found.append(Video(row, saved.ids[row], [saved.classes[label] for label in labels], described))
    return found


def listed(saved: SavedPredictions, most: int = _LISTED) -> Listed:
    """List all videos for the search, the first `most` of them where there are more."""
    count = min(len(saved.ids), most)
    top = best(saved.probabilities[:count])
    found = np.take_along_axis(saved.probabilities[:count], top, axis=1)
    return Listed(
        classes=list(saved.classes),
        ids=list(saved.ids[:count]),
        labels=[np.flatnonzero(row).tolist() for row in saved.labels[:count]]
        if saved.multi_label
        else saved.labels[:count, None].tolist(),
        best=top.ravel().tolist(),
        probabilities=np.round(1000 * found).astype(int).ravel().tolist(),
        each=top.shape[1],
        left_out=len(saved.ids) - count,
    )


def open_source(settings: Config, saved: SavedPredictions) -> VideoDataset:
    """Open the dataset of predictions. Raises UserError where it is not there, or is another one."""
    dataset = open_dataset(settings.data.name, settings.data.data_dir, saved.split)
    if dataset.manifest["sha256"] != saved.sha256:
        raise UserError(
            f"{dataset.directory} is another dataset ({dataset.manifest['sha256'][:8]}) than that of the "
            f"predictions ({saved.sha256[:8]})"
        )
    return dataset


def with_strips(
    found: Sequence[Video], saved: SavedPredictions, settings: Config, dataset: VideoDataset
) -> Iterator[Video]:
    """Add the frames that the model saw in the middle crop of the middle clip, until they take too much."""
    clip, crop = settings.eval.clips // 2, settings.eval.crops // 2
    taken = 0
    for video in found:
        if taken > _MOST_BYTES:
            yield dataclasses.replace(video, said="no frames, since the page would become too large")
            continue
        try:
            frames, at = _seen(dataset, int(saved.index[video.row]), settings, clip, crop)
        except DecodeError as error:
            yield dataclasses.replace(video, said=f"it does not decode: {' '.join(str(error).split())}")
            continue
        strip = pictures.sheet(frames)
        taken += len(strip)
        said = f"frames {at[0]} to {at[-1]}"
        if settings.eval.clips > 1:
            said += f" (clip {clip + 1} of {settings.eval.clips})"
        yield dataclasses.replace(video, strip=strip, said=said)


def _seen(
    dataset: VideoDataset, index: int, settings: Config, clip: int, crop: int
) -> tuple[UInt8[np.ndarray, "T H W 3"], list[int]]:
    """Decode the frames of one view, at most `_FRAMES` of them; return them and their places in the video."""
    data = settings.data
    example = dataset[index]
    of_clip = pipeline.view_indices(example.frames, data, settings.eval).reshape(settings.eval.clips, -1)[
        clip
    ]
    some = of_clip[
        np.unique(np.linspace(0, len(of_clip) - 1, min(_FRAMES, len(of_clip))).round().astype(int))
    ]
    views = augment.test_views(example.frames_at(some), data.height_width, crops=settings.eval.crops)
    return views[crop], some.tolist()


def as_json(found: Listed) -> dict[str, Any]:
    """Make the value that the page's search reads."""
    return found._asdict()
