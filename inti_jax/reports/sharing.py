"""Write a trained run as the directory of a shared model, for the Hugging Face Hub.

It holds the weights with the run's record (`model.safetensors`), that record to read (`config.json`), the
labels, the run's evaluations and a model card. Paths of the machine that trained are left out.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from inti_jax.config import Config
from inti_jax.config.backbones import called
from inti_jax.distributed import sharding
from inti_jax.errors import UsageError, UserError
from inti_jax.hub import names
from inti_jax.hub.names import HubName
from inti_jax.models import freezing
from inti_jax.pages import page
from inti_jax.pretrained.clip_file import replacing
from inti_jax.reports import costs, runs, settings
from inti_jax.runs import checkpoint, trained, trained_file
from inti_jax.runs.evaluations import Evaluation, Setting, Weights
from inti_jax.runs.record import RunRecord

# Names that the Hub knows, and ours, by the field of an evaluation.
_FIGURES = {"top1": ("accuracy", "top-1"), "top5": ("accuracy", "top-5"), "map": ("map", "mAP")}


@dataclasses.dataclass(frozen=True)
class Shared:
    """The step and the hash of the weights that were written; `whole` says if they are all of the model."""

    step: int
    hash: str
    whole: bool


def write(
    workdir: Path,
    out: Path,
    *,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
    whole: bool = False,
) -> Shared:
    """Write the model of a run, of its newest checkpoint or that of `step`, to the new directory `out`.

    By default it holds what trained, with `whole` all parameters. `weights` is as for `trained.load`. Raises
    UsageError where `out` exists, and UserError where `workdir` holds no finished checkpoint.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists: name a directory that does not")
    at = checkpoint.find(workdir, step)
    if at is None:
        raise UserError(f"{workdir} holds no finished checkpoint: give the directory of a run")
    found = trained.load(workdir, sharding.one_device_mesh(), step=at, weights=weights)
    run = runs.read([workdir])[0]
    record = dataclasses.replace(found.record, config=_published(found.record.config))
    whole = whole or freezing.trained(record.config.model, found.params) == found.params.keys()
    evaluated = {setting: by_step for setting, by_step in run.evaluated.items() if by_step}
    with replacing(out) as directory:
        directory.mkdir()
        weights_file = directory / trained_file.SHARED
        digest = trained_file.write(weights_file, record, found.params, found.weights, whole=whole)
        card = _card(out.name, run.name, record, at, found.weights, whole, evaluated)
        texts = {
            "README.md": card,
            "config.json": json.dumps(record.to_json(), indent=2),
            "labels.txt": "\n".join(record.dataset.labels),
            "metrics.json": json.dumps({"step": at, "evaluations": _evaluations(evaluated)}, indent=2),
        }
        for name, text in texts.items():
            (directory / name).write_text(text + "\n", encoding="utf-8")
    return Shared(at, digest, whole)


def _published(config: Config) -> Config:
    """Return the config without the paths of the machine that trained; names on the Hub stay."""

    def shown(text: str) -> str:
        return text if not text or isinstance(names.place(text), HubName) else Path(text).name

    model = dataclasses.replace(config.model, pretrained=shown(config.model.pretrained), start_from="")
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, data_dir="data"))


def _evaluations(evaluated: dict[Setting, dict[int, Evaluation]]) -> list[dict[str, Any]]:
    """List the evaluations for JSON, without the figures that they lack."""
    return [
        {
            "step": each.step,
            **dataclasses.asdict(setting),
            **{
                name: value
                for name in (*_FIGURES, "mean_class")
                if not math.isnan(value := getattr(each, name))
            },
        }
        for setting, by_step in evaluated.items()
        for each in by_step.values()
    ]


def _card(
    name: str,
    title: str,
    record: RunRecord,
    step: int,
    weights: Weights,
    whole: bool,
    evaluated: dict[Setting, dict[int, Evaluation]],
) -> str:
    """Render the model card."""
    config, dataset, cost = record.config, record.dataset, costs.compute(record)
    own = dataclasses.replace(Setting.of_run(record), weights=weights)
    evaluation = evaluated.get(own, {}).get(step)
    figures = [
        {"type": kind, "name": shown, "value": f"{100 * value:.2f}"}
        for field, (kind, shown) in _FIGURES.items()
        if evaluation is not None and not math.isnan(value := getattr(evaluation, field))
    ]
    base = names.place(config.model.pretrained)
    backbone = called(config.model.backbone, record.backbone.size)
    on_hub = isinstance(base, HubName)
    local = not whole and not on_hub and config.model.pretrained != "random"
    return page.render(
        "model_card.md",
        name=name,
        title=title,
        labels=len(dataset.labels),
        backbone=backbone,
        base_model=base.repository if isinstance(base, HubName) else None,
        needs=None if whole else f"`{config.model.pretrained}`",
        given=f', pretrained="{config.model.pretrained}"' if local else "",
        flag=f" --pretrained {config.model.pretrained}" if local else "",
        backbone_hash=record.backbone.sha256,
        dataset=dataset.name,
        version=dataset.version,
        dataset_hash=dataset.sha256[:16],
        frames=config.data.num_frames,
        figures=figures,
        views=f"{config.eval.clips} x {config.eval.crops}",
        weights="averaged" if weights == "ema" else "raw",
        step=step,
        batch=config.train.global_batch,
        gmacs=f"{cost.gmacs:.4g}",
        uncompressed=f"{cost.uncompressed:.4g}",
        parameters=f"{cost.parameters:,}",
        trained=f"{cost.trained:,}",
        changes=[each for each in settings.changes(config) if each.key not in ("data.data_dir",)],
    )
