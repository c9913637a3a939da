"""Evaluation: every video once, several views each, the softmax averaged over a video's views."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from inti_jax import config, initial, metrics, run, sharding, state, trained
from inti_jax.checkpoint import latest_step
from inti_jax.config import Config
from inti_jax.data import pipeline, views
from inti_jax.data.dataset import Source, open_dataset
from inti_jax.errors import UserError
from inti_jax.models.video import VideoModel
from inti_jax.state import Params
from inti_jax.writers import MetricsWriter, Progress, read_metrics

log = logging.getLogger("inti_jax")

Forward = Callable[[Params, Any], Any]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The probabilities of every video that decoded, in the order of the dataset."""

    index: Int[np.ndarray, " M"]  # which video of the dataset
    labels: Int[np.ndarray, " M"]
    views: Float[np.ndarray, "M V K"]
    missing: Int[np.ndarray, " L"]  # the videos that did not decode

    @property
    def probabilities(self) -> Float[np.ndarray, "M K"]:
        return self.views.mean(axis=1)


def make_forward(graphdef: nnx.GraphDef[VideoModel], mesh: jax.sharding.Mesh) -> Forward:
    """A jitted `(params, batch) -> batch with `probabilities` [b, V, K] for `video``, on every host.

    Views are taken one after another, so that memory does not grow with their number.
    """

    def probabilities(params: Params, video: UInt8[Array, "B V T H W 3"]) -> Float[Array, "B V K"]:
        model = state.merge(graphdef, params)
        one_view = jax.lax.map(lambda view: jax.nn.softmax(model(view)), jnp.moveaxis(video, 1, 0))
        return jnp.moveaxis(one_view, 0, 1)

    def forward(params: Params, batch: dict[str, Array]) -> dict[str, Array]:
        return {
            "probabilities": probabilities(params, batch["video"]),
            **{key: batch[key] for key in ("index", "label", "mask", "missing")},
        }

    # Replicated: then each host can fetch, and account for, the videos of all.
    return jax.jit(forward, out_shardings=sharding.replicated(mesh))


def predict(
    forward: Forward,
    params: Params,
    source: Source,
    data: config.Data,
    settings: config.Eval,
    mesh: jax.sharding.Mesh,
) -> Predictions:
    """Runs every video of `source` through the model, over all hosts."""
    sharding.check_batch(settings.batch, "eval.batch", mesh)
    batches = pipeline.eval_batches(
        source, data, settings, process_index=jax.process_index(), process_count=jax.process_count()
    )
    total = -(-len(source) // settings.batch)
    progress = Progress("evaluate", total)
    rows: list[dict[str, np.ndarray]] = []
    pending = None
    for batch in batches:
        result = forward(params, sharding.place_batch(batch, mesh))
        # Fetched one batch late, so that the host loads videos while the devices compute.
        if pending is not None:
            rows.append(jax.device_get(pending))
        pending = result
        progress.advance()
    if pending is not None:
        rows.append(jax.device_get(pending))
    progress.close()
    return _in_order({key: np.concatenate([row[key] for row in rows]) for key in rows[0]})


def _in_order(rows: dict[str, np.ndarray]) -> Predictions:
    mask = rows["mask"]
    order = np.argsort(rows["index"][mask])
    views = rows["probabilities"][mask][order]
    index = rows["index"][mask][order]
    if not np.isfinite(views).all():
        bad = index[~np.isfinite(views).all(axis=(1, 2))]
        raise UserError(f"the model gives probabilities that are not finite, first for video {bad[0]}")
    return Predictions(index, rows["label"][mask][order], views, np.sort(rows["index"][rows["missing"]]))


def evaluate(
    forward: Forward,
    params: Params,
    dataset: Source,
    data: config.Data,
    settings: config.Eval,
    mesh: jax.sharding.Mesh,
) -> dict[str, float | int]:
    """Accuracies over all of `dataset`, as the record of metrics.jsonl.

    Videos that cannot be decoded count as `missing` and in no accuracy. `*_one_view` is the middle clip's
    middle crop alone.
    """
    started = time.perf_counter()
    found = predict(forward, params, dataset, data, settings, mesh)
    if not len(found.index):
        raise UserError(f"none of the {len(dataset)} videos of the evaluation could be decoded")
    rank = metrics.ranks(found.probabilities, found.labels)
    middle = (settings.clips // 2) * settings.crops + settings.crops // 2
    one_view = metrics.ranks(found.views[:, middle], found.labels)
    return {
        "top1": metrics.topk_accuracy(rank, 1),
        "top5": metrics.topk_accuracy(rank, 5),
        "mean_class": metrics.mean_class_accuracy(rank, found.labels),
        "top1_one_view": metrics.topk_accuracy(one_view, 1),
        "top5_one_view": metrics.topk_accuracy(one_view, 5),
        "views": settings.clips * settings.crops,
        "evaluated": len(found.index),
        "missing": len(found.missing),
        "seconds": time.perf_counter() - started,
    }


def evaluate_run(settings: Config, workdir: Path) -> None:
    """Evaluates the newest checkpoint of `workdir` under `settings`, and adds the record to its metrics.

    Where there is no checkpoint, that is what the run would start from, as step 0: zero-shot classification
    by the pretrained weights, or what another run trained (`model.start_from`).
    """
    mesh = sharding.make_mesh(settings.mesh)
    step = latest_step(workdir)
    untrained = step is None and (settings.model.head.init == "text" or bool(settings.model.start_from))
    earlier = None if untrained else run.RunRecord.read(workdir)
    dataset = open_dataset(settings.data.name, settings.data.data_dir, "val")
    views.check(dataset, settings.data, settings.eval)
    if earlier is None:
        record = run.RunRecord(settings, run.Dataset.of(dataset), initial.find_backbone(settings.model))
        found = trained.start(record, mesh)
        if jax.process_index() == 0:
            record.write(workdir)
    else:
        record = run.RunRecord(settings, earlier.dataset, earlier.backbone)
        record.check_continues(earlier, workdir)
        if dataset.labels != record.dataset.labels:
            raise UserError(
                f"the labels of {settings.data.name} in {settings.data.data_dir} are not those that "
                f"{workdir} was trained with: prepare the dataset again with --labels in the run's order"
            )
        found = trained.load_run(record, workdir, mesh)
    graphdef, params = found.for_inference()
    figures = evaluate(make_forward(graphdef, mesh), params, dataset, settings.data, settings.eval, mesh)
    with contextlib.closing(MetricsWriter(workdir)) as writer:
        writer.write(step or 0, "val", figures | {"dataset": dataset.manifest["sha256"]})
    log.info("step %d: %s", step or 0, summary(figures))


def was_evaluated(workdir: Path, step: int) -> bool:
    return any(record["split"] == "val" and record["step"] == step for record in read_metrics(workdir))


def summary(figures: dict[str, float | int]) -> str:
    """One line for people."""
    text = (
        f"top-1 {figures['top1']:.3f}, top-5 {figures['top5']:.3f}, mean class {figures['mean_class']:.3f} "
        f"over {figures['evaluated']} videos"
    )
    if figures["views"] > 1:
        text += f", {figures['views']} views each (one view: top-1 {figures['top1_one_view']:.3f})"
    return text + (f"; {figures['missing']} missing" if figures["missing"] else "")
