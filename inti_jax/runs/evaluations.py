"""Read the evaluations in a run's metrics.jsonl, and tell which of them can be compared."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from inti_jax.config import Config
from inti_jax.errors import UserError
from inti_jax.runs import layout
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics

# The weights of a checkpoint: as the last step left them, or their moving average (`train.ema`).
Weights = Literal["raw", "ema"]

# Selects a step of a run: by number, the best of those that were evaluated, or (None) the newest.
Step = int | Literal["best"] | None


@dataclasses.dataclass(frozen=True)
class Setting:
    """The views, dataset, weights and videos of an evaluation: accuracies under equal settings compare.

    `dataset` is the hash in the dataset's manifest. `subset` is the number of its videos that were evaluated,
    where these were not all (`train.eval_videos`). None stands for a value that a record lacks. A record
    without `weights` is of the raw ones.
    """

    views: int | None  # clips x crops
    clips: int | None
    dataset: str | None
    weights: Weights = "raw"
    subset: int | None = None

    @staticmethod
    def of(settings: Config, dataset: str) -> "Setting":
        """Make the own setting of a run with these `settings` on the dataset whose hash is `dataset`.

        The weights are the moving average where the run keeps one.
        """
        views, weights = settings.eval, settings.train.ema > 0
        return Setting(views.clips * views.crops, views.clips, dataset, "ema" if weights else "raw")

    @staticmethod
    def of_run(record: RunRecord) -> "Setting":
        """Make the setting under which the run of `record` evaluates itself."""
        return Setting.of(record.config, record.dataset.sha256)

    def made(self) -> "list[Setting]":
        """List the settings of the evaluations that a run makes of a step; this, its own, comes last.

        A run with a moving average evaluates its raw weights as well.
        """
        return list(dict.fromkeys([dataclasses.replace(self, weights="raw"), self]))

    def facts(self, own: "Setting") -> dict[str, str | int | None]:
        """Return what a record says beside the views: the dataset, and where it has to, weights and subset.

        `own` is the own setting of the run.
        """
        found: dict[str, str | int | None] = {"dataset": self.dataset}
        if "ema" in (self.weights, own.weights):
            found["weights"] = self.weights
        if self.subset is not None:
            found["subset"] = self.subset
        return found

    def includes(self, other: "Setting") -> bool:
        """Tell whether `other` is this setting, as far as its record says.

        Records of earlier versions have `views` without `clips`.
        """
        same_clips = other.clips in (None, self.clips)
        return same_clips and self == dataclasses.replace(other, clips=self.clips)

    def differences(self, own: "Setting") -> list[str]:
        """Describe how this setting differs from a run's own, in a few words for each difference."""
        found = []
        if self.views is None or self.views != own.views or self.clips not in (None, own.clips):
            if self.views and self.clips:
                found.append(f"{self.clips} x {self.views // self.clips} views")
            else:
                found.append("unknown views" if self.views is None else f"{self.views} views")
        if self.dataset != own.dataset:
            found.append("unknown dataset" if self.dataset is None else f"dataset {self.dataset[:8]}")
        if self.weights != own.weights:
            found.append(f"{self.weights} weights")
        if self.subset != own.subset:
            found.append("all videos" if self.subset is None else f"{self.subset} videos")
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One `val` record: the figures (from 0 to 1) of the checkpoint of `step` under `setting`.

    Those that a record lacks are NaN: the accuracies where videos have several labels, else `map`.
    """

    step: int
    top1: float
    top5: float
    setting: Setting
    mean_class: float = math.nan  # the mean of the classes' top1
    map: float = math.nan  # the mean of the classes' average precisions

    @property
    def best_by(self) -> float:
        """The figure by which the checkpoints of a run compare: `map` where there is one, else `top1`."""
        return self.top1 if math.isnan(self.map) else self.map


def read(workdir: Path) -> list[Evaluation]:
    """Read all evaluations of a run, in the order in which they were made.

    Raises UserError for a `val` record without a step or accuracies.
    """
    return [_parse(workdir, entry) for entry in read_metrics(workdir) if entry["split"] == "val"]


def by_step(found: Iterable[Evaluation], setting: Setting) -> dict[int, Evaluation]:
    """Map each step, in ascending order, to its last evaluation under `setting`."""
    selected = {each.step: each for each in found if setting.includes(each.setting)}
    return dict(sorted(selected.items()))


def by_checkpoint(found: Sequence[Evaluation], own: Setting, saved: Collection[int]) -> dict[int, Evaluation]:
    """Map steps in `saved` to the evaluations by which they compare, in ascending order.

    These are the run's own evaluations. Where no step has one, which is of all videos, they are those of the
    subset that was evaluated last (`train.eval_videos`).
    """
    for setting in (own, *(each.setting for each in reversed(found) if each.setting.subset is not None)):
        if dataclasses.replace(setting, subset=None) == own:
            selected = {step: each for step, each in by_step(found, setting).items() if step in saved}
            if selected:
                return selected
    return {}


def was_evaluated(workdir: Path, step: int, setting: Setting) -> bool:
    """Tell whether the run in `workdir` has an evaluation of `step` under `setting`."""
    return step in by_step(read(workdir), setting)


def _parse(workdir: Path, entry: dict[str, Any]) -> Evaluation:
    """Parse a `val` record. Raises UserError where an accuracy is missing or no number."""
    names = ("top1", "top5", "mean_class", "map")
    figures = [entry.get(name, math.nan) for name in names]
    if not {"top1", "map"} & entry.keys() or not all(isinstance(figure, int | float) for figure in figures):
        raise UserError(
            f"{layout.metrics_path(workdir)}: the `val` record of step {entry['step']} has no accuracies: "
            "correct or delete it"
        )
    setting = Setting(
        entry.get("views"),
        entry.get("clips"),
        entry.get("dataset"),
        entry.get("weights", "raw"),
        entry.get("subset"),
    )
    return Evaluation(entry["step"], setting=setting, **dict(zip(names, map(float, figures), strict=True)))
