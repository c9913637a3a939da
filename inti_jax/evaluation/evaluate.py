"""Evaluate a model: every video once, several views each, the probabilities averaged over a video's views.

Probabilities are the softmax of the logits, or the sigmoid of each where videos have several labels.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from inti_jax import config
from inti_jax.config import Config, check_size
from inti_jax.data import pipeline, views
from inti_jax.data.dataset import Source, VideoDataset, check_loss, open_configured
from inti_jax.data.loading.workers import Workers
from inti_jax.distributed import agreement, liveness, sharding
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import metrics
from inti_jax.models import parameters
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.runs import checkpoint, layout, predictions, trained
from inti_jax.runs.backbone import find_backbone, pin
from inti_jax.runs.evaluations import Setting, Weights
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.runs.writers import metrics_writer
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.runs.writers.progress import Progress

log = logging.getLogger("inti_jax")

Forward = Callable[[Params, Any], Any]
Output = Callable[[VideoModel, Array], Array]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The probabilities of every video that decoded, in the order of the dataset."""

    index: Int[np.ndarray, " M"]  # of the video in the dataset
    labels: Int[np.ndarray, " M"] | Bool[np.ndarray, "M K"]  # classes; or True for all labels of each video
    views: Float[np.ndarray, "M V K"]
    missing: Int[np.ndarray, " L"]  # the videos that did not decode

    @property
    def probabilities(self) -> Float[np.ndarray, "M K"]:
        """The probabilities averaged over the views of each video."""
        return self.views.mean(axis=1)


def probabilities(model: VideoModel, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B K"]:
    """Compute the softmax of the model's logits, which evaluation averages over a video's views."""
    return jax.nn.softmax(model(video))


def sigmoids(model: VideoModel, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B K"]:
    """Compute the sigmoid of each of the model's logits, for labels that do not exclude each other."""
    return jax.nn.sigmoid(model(video))


def output_of(train: config.Train) -> Output:
    """Choose the function that computes the probabilities of a model that `train` trained."""
    return sigmoids if train.multi_label else probabilities


def make_forward(
    graphdef: nnx.GraphDef[VideoModel], mesh: jax.sharding.Mesh, output: Output = probabilities
) -> Forward:
    """Make a jitted `(params, batch) -> batch` that replaces `video` by `values` [b, V, ...].

    `output` computes the values of one view. The result is replicated on every host. Views are taken one
    after another, so that memory does not grow with their number.
    """

    def values(params: Params, video: UInt8[Array, "B V T H W 3"]) -> Float[Array, "B V ..."]:
        model = parameters.merge(graphdef, params)
        one_view = jax.lax.map(lambda view: output(model, view), jnp.moveaxis(video, 1, 0))
        return jnp.moveaxis(one_view, 0, 1)

    def forward(params: Params, batch: dict[str, Array]) -> dict[str, Array]:
        return {
            "values": values(params, batch["video"]),
            **{key: batch[key] for key in ("index", "label", "mask", "missing")},
        }

    # Replicated, so that each host can fetch and count the videos of all hosts.
    return jax.jit(forward, out_shardings=sharding.replicated(mesh))


def forward_batches(
    forward: Forward,
    params: Params,
    source: Source,
    data: config.Data,
    settings: config.Eval,
    mesh: jax.sharding.Mesh,
    after_batch: Callable[[], None] = lambda: None,
    workers: Workers | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Run every video of `source` through the model, over all hosts, and yield the rows batch by batch.

    Every host calls `after_batch` the same number of times; it may raise to end the evaluation. Videos are
    loaded by `workers` if they are given, else by processes or threads of its own. Rows of a FileDataset
    keep what was `found`, see `pipeline.EvalBatch`.
    """
    sharding.check_batch(settings.batch, "eval.batch", mesh)
    rows = sharding.host_rows(mesh, settings.batch)
    pending = None
    liveness.note("evaluation: batch 1", slow=True)
    with pipeline.eval_batches(source, data, settings, rows=rows, workers=workers) as batches:
        for number, batch in enumerate(batches, start=2):
            here = {key: batch.pop(key) for key in ("found",) if key in batch}
            result = forward(params, sharding.place_batch(batch, mesh)), here
            # Fetch one batch late, so that the host loads videos while the devices compute.
            if pending is not None:
                yield _fetched(*pending)
            pending = result
            liveness.note(f"evaluation: batch {number}", slow=number == 2)  # compiling may still go on
            after_batch()
    if pending is not None:
        yield _fetched(*pending)


def _fetched(result: dict[str, Array], here: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return jax.device_get(result) | here


def predict(
    forward: Forward,
    params: Params,
    source: Source,
    data: config.Data,
    settings: config.Eval,
    mesh: jax.sharding.Mesh,
    after_batch: Callable[[], None] = lambda: None,
    workers: Workers | None = None,
) -> Predictions:
    """Run every video of `source` through the model, as `forward_batches`, and gather the probabilities.

    Raises UserError where a probability is not finite.
    """
    results = []
    with contextlib.closing(Progress("evaluate", -(-len(source) // settings.batch))) as progress:
        for rows in forward_batches(forward, params, source, data, settings, mesh, after_batch, workers):
            results.append(dict(rows))
            progress.advance()
    # Popped, so that a key's parts do not stay beside the whole.
    return _in_order({key: np.concatenate([rows.pop(key) for rows in results]) for key in list(results[0])})


def _in_order(rows: dict[str, np.ndarray]) -> Predictions:
    decoded = np.flatnonzero(rows["mask"])
    order = decoded[np.argsort(rows["index"][decoded])]
    views, index = rows["values"][order], rows["index"][order]
    if not np.isfinite(views).all():
        bad = index[~np.isfinite(views).all(axis=(1, 2))]
        raise UserError(
            f"the model's probabilities are not finite, first for video {bad[0]}: its training "
            "diverged; train with a lower `train.learning_rate`, or evaluate an earlier step"
        )
    return Predictions(index, rows["label"][order], views, np.sort(rows["index"][rows["missing"]]))


def evaluate(
    forward: Forward,
    params: Params,
    dataset: Source,
    data: config.Data,
    settings: config.Eval,
    mesh: jax.sharding.Mesh,
    after_batch: Callable[[], None] = lambda: None,
    workers: Workers | None = None,
) -> tuple[dict[str, float | int], Predictions]:
    """Compute the figures of `accuracies` or `precisions` over all of `dataset`; see `predict` for the rest.

    Returns the figures and the predictions that they are of. Videos that cannot be decoded count as `missing`
    and enter no figure. `*_one_view` is the figure of the middle clip's middle crop alone. Raises UserError
    where no video can be decoded.
    """
    started = time.perf_counter()
    found = predict(forward, params, dataset, data, settings, mesh, after_batch, workers)
    if not len(found.index):
        raise UserError(
            f"none of the {len(dataset)} videos of the evaluation could be decoded: look for the reason with "
            "`python -m inti_jax.prepare --check DATASET --decode`"
        )
    middle = found.views[:, (settings.clips // 2) * settings.crops + settings.crops // 2]
    compute = accuracies if found.labels.ndim == 1 else precisions
    figures = {
        **compute(found.probabilities, middle, found.labels),
        "views": settings.clips * settings.crops,
        "clips": settings.clips,
        "evaluated": len(found.index),
        "missing": len(found.missing),
        "seconds": time.perf_counter() - started,
    }
    return figures, found


def accuracies(
    probabilities: Float[np.ndarray, "M K"],
    one_view: Float[np.ndarray, "M K"],
    labels: Int[np.ndarray, " M"],
) -> dict[str, float | int]:
    """Compute the figures of videos with one label each, from all views and from one of them."""
    rank, rank_one_view = metrics.ranks(probabilities, labels), metrics.ranks(one_view, labels)
    return {
        "top1": metrics.topk_accuracy(rank, 1),
        "top5": metrics.topk_accuracy(rank, 5),
        "mean_class": metrics.mean_class_accuracy(rank, labels),
        "top1_one_view": metrics.topk_accuracy(rank_one_view, 1),
        "top5_one_view": metrics.topk_accuracy(rank_one_view, 5),
    }


def precisions(
    probabilities: Float[np.ndarray, "M K"],
    one_view: Float[np.ndarray, "M K"],
    labels: Bool[np.ndarray, "M K"],
) -> dict[str, float | int]:
    """Compute the figures of videos with several labels, from all views and from one of them.

    `map` is the mean of the average precisions of the classes that a video has. The others are counted in
    `classes_without_videos`.
    """
    present = labels.any(axis=0)
    return {
        "map": metrics.mean_average_precision(probabilities[:, present], labels[:, present]),
        "map_one_view": metrics.mean_average_precision(one_view[:, present], labels[:, present]),
        "classes": int(present.sum()),
        "classes_without_videos": int((~present).sum()),
    }


def keep(
    workdir: Path, step: int, found: Predictions, dataset: VideoDataset, settings: Config, setting: Setting
) -> None:
    """Keep the predictions of an evaluation in the run's directory, see `inti_jax.runs.predictions`.

    `found` are of `dataset` under `settings`, whose views and weights `setting` names. Do so before the
    record is written: a record then has its predictions, whenever a run is killed. Does nothing in processes
    other than 0.
    """
    liveness.note("writing predictions", slow=True)
    if jax.process_index() != 0:
        return
    crops = settings.eval.crops
    spans: dict[int, Int32[np.ndarray, "V 2"]] = {}
    for frames in set(dataset.frames[found.index].tolist()):
        clips = pipeline.view_indices(frames, settings.data, settings.eval).reshape(settings.eval.clips, -1)
        spans[frames] = np.repeat(clips[:, [0, -1]], crops, axis=0).astype(np.int32)
    saved = predictions.SavedPredictions(
        dataset=dataset.manifest["name"],
        sha256=dataset.manifest["sha256"],
        split=dataset.split,
        step=step,
        weights=setting.weights,
        clips=settings.eval.clips,
        crops=crops,
        classes=dataset.labels,
        ids=tuple(dataset.ids[index] for index in found.index),
        index=found.index.astype(np.int32),
        labels=found.labels if found.labels.ndim == 2 else found.labels.astype(np.int32),
        probabilities=found.probabilities,
        frames=np.stack([spans[frames] for frames in dataset.frames[found.index].tolist()]),
        missing=tuple(dataset.ids[index] for index in found.missing),
    )
    predictions.write(workdir, saved, found.views)


def write(
    writer: MetricsWriter, step: int, figures: dict[str, float | int], setting: Setting, own: Setting
) -> None:
    """Write and log the record of an evaluation under `setting`; `own` is the run's own setting."""
    facts = setting.facts(own)
    writer.write(step, "val", figures | facts, variant=setting.differences(own))
    which = f", {setting.weights} weights" if "weights" in facts else ""
    log.info("step %d%s: %s", step, which, summary(figures))


def evaluate_run(
    settings: Config, workdir: Path, step: checkpoint.Step = None, weights: Weights | None = None
) -> None:
    """Evaluate a checkpoint of `workdir` under `settings`, and add the record to its metrics.

    The checkpoint is the newest one, or that of `step`; for `weights` see `trained.load`. Where there is
    none, the start of the run is evaluated as step 0: zero-shot classification by the pretrained weights, or
    the model that another run trained (`model.start_from`). Raises UsageError where there is no such start
    either.
    """
    with layout.lock(workdir):
        _evaluate_run(settings, workdir, step, weights)


def _evaluate_run(settings: Config, workdir: Path, step: checkpoint.Step, weights: Weights | None) -> None:
    metrics_writer.check(settings)
    mesh = sharding.make_mesh(settings.mesh)
    agreement.check_workdir(workdir)
    at = checkpoint.find(workdir, step)
    if at is None and not (settings.model.head.init == "text" or settings.model.start_from):
        raise UsageError(f"{workdir} holds no finished checkpoint: give the directory of a run")
    dataset = open_configured(settings.data, "val")
    check_loss(dataset, settings.train.loss)
    views.check(dataset, settings.data, settings.eval)
    sha256 = dataset.manifest["sha256"]
    own = Setting.of(settings, sha256)
    if at is None:
        if weights == "ema" and own.weights == "raw":
            raise UsageError("--weights ema: `train.ema` is 0, and there are no averaged weights")
        settings = pin(settings)
        record = RunRecord(settings, Dataset.of(dataset), find_backbone(settings))
        agreement.check(record.flat() | {"--weights": weights}, sha256, mode="eval", step=0)
        # An average starts from these weights.
        found = dataclasses.replace(trained.start(record, mesh), weights=weights or own.weights)
        if jax.process_index() == 0:
            record.write(workdir)
    else:
        earlier = RunRecord.read(workdir)
        record = RunRecord(settings, earlier.dataset, earlier.backbone)
        record.check_continues(earlier, workdir)
        check_size(settings, record.backbone.size)
        own = Setting.of_run(earlier)
        if dataset.labels != record.dataset.labels:
            raise UserError(
                f"the labels of {settings.data.name} in {settings.data.data_dir} differ from the labels "
                f"that {workdir} was trained with: prepare the dataset again with --labels in the run's "
                "order"
            )
        agreement.check(record.flat() | {"--weights": weights}, sha256, mode="eval", step=at)
        liveness.note("reading the checkpoint", slow=True)
        found = trained.load_run(record, workdir, mesh, at, weights)
    graphdef, params = found.for_inference()
    forward = make_forward(graphdef, mesh, output_of(settings.train))
    figures, predicted = evaluate(forward, params, dataset, settings.data, settings.eval, mesh)
    setting = dataclasses.replace(Setting.of(settings, sha256), weights=found.weights)
    keep(workdir, at or 0, predicted, dataset, settings, setting)
    with contextlib.closing(MetricsWriter(workdir, settings)) as writer:
        write(writer, at or 0, figures, setting, own)


def summary(figures: dict[str, float | int]) -> str:
    """Format the figures of an evaluation as one line."""
    if "map" in figures:
        text = f"mAP {figures['map']:.3f} over {figures['classes']} classes of {figures['evaluated']} videos"
        one_view = f"mAP {figures['map_one_view']:.3f}"
        if figures["classes_without_videos"]:
            text += f" ({figures['classes_without_videos']} more have no video)"
    else:
        text = (
            f"top-1 {figures['top1']:.3f}, top-5 {figures['top5']:.3f}, mean class "
            f"{figures['mean_class']:.3f} over {figures['evaluated']} videos"
        )
        one_view = f"top-1 {figures['top1_one_view']:.3f}"
    if figures["views"] > 1:
        text += f", {figures['views']} views each (one view: {one_view})"
    return text + (f"; {figures['missing']} missing" if figures["missing"] else "")
