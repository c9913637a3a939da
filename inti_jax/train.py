"""The training step and the loop around it."""

import contextlib
import functools
import logging
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from inti_jax import (
    agreement,
    checkpoint,
    evaluate,
    evaluations,
    initial,
    liveness,
    losses,
    mixing,
    optim,
    profiling,
    report,
    run,
    sharding,
    state,
)
from inti_jax.checkpoint import Checkpoints
from inti_jax.compilation import kept
from inti_jax.config import Config, ConfigError, Mix
from inti_jax.data import mirror, pipeline, sampling, views
from inti_jax.data.dataset import VideoDataset, open_dataset
from inti_jax.data.device import DevicePrefetch
from inti_jax.models.backbone import Backbone
from inti_jax.models.video import VideoModel
from inti_jax.monitor import Metrics, Monitor, Speed
from inti_jax.preemption import Preemption
from inti_jax.state import Params, TrainState
from inti_jax.writers import MetricsWriter, Progress

log = logging.getLogger("inti_jax")

Batch = dict[str, Array]


# --------------------------------------------------------------------------------------------------
# The step: a pure function of state and batch.


def train_step(
    train_state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef[VideoModel],
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    smoothing: float,
    mix: Mix,
    accumulate: int,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One update from one global batch: `video` [B, T, H, W, 3], `label` [B] and `mask` [B].

    Rows with a false mask (videos that did not decode) weigh nothing. With `accumulate` > 1 the batch is
    taken in that many parts, one after another: same update, less memory. Which rows are mixed, and how, is a
    function of `seed` and the step; dropout and stochastic depth also of the part.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), train_state.step)
    mixes = mix.mixup > 0 or mix.cutmix > 0

    def summed_loss(trainable: Params, part: dict[str, Any]) -> tuple[Array, Array]:
        model = state.merge(graphdef, {**trainable, **train_state.frozen})
        model_key = jax.random.split(jax.random.fold_in(step_key, part["part"]))[0]
        mixed = mixing.mix(part["video"], part["mask"], part["mix"]) if mixes else None
        logits = model(part["video"] if mixed is None else mixed.video, model_key if model.random else None)
        loss = losses.cross_entropy(logits, part["label"], smoothing)
        if mixed is not None:
            partner = losses.cross_entropy(logits, mixing.partners(part["label"]), smoothing)
            loss = mixed.own * loss + (1 - mixed.own) * partner
        correct = logits.argmax(axis=-1) == part["label"]
        return (loss * part["mask"]).sum(), (correct & part["mask"]).sum()

    grad_fn = jax.value_and_grad(summed_loss, has_aux=True)
    rows: dict[str, Any] = {key: batch[key] for key in ("video", "label", "mask")}
    # Drawn for the whole batch, so that they are the same in any number of parts.
    mix_key = jax.random.split(jax.random.fold_in(step_key, 0))[1]
    draws = mixing.draw(mix, rows["mask"].size // 2, mix_key) if mixes else None
    if accumulate == 1:
        first = rows | {"mix": draws, "part": jnp.zeros((), jnp.int32)}
        (loss, correct), grads = grad_fn(train_state.trainable, first)
    else:
        # Row i goes to part i % accumulate, or pair i where pairs are mixed: each device keeps its own rows.
        parts = {key: _in_parts(value, accumulate, 2 if mixes else 1) for key, value in rows.items()}
        parts |= {"mix": jax.tree.map(lambda x: _in_parts(x, accumulate), draws)}
        parts |= {"part": jnp.arange(accumulate)}
        zeros = jnp.zeros(()), jnp.zeros((), jnp.int32)
        (loss, correct), grads = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, grad_fn(train_state.trainable, part)), None),
            (zeros, jax.tree.map(jnp.zeros_like, train_state.trainable)),
            parts,
        )[0]
    count = jnp.maximum(batch["mask"].sum(), 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    updates, opt_state = transform.update(grads, train_state.opt_state, train_state.trainable)
    new_state = TrainState(
        step=train_state.step + 1,
        trainable=optax.apply_updates(train_state.trainable, updates),
        frozen=train_state.frozen,
        opt_state=opt_state,
    )
    metrics = {
        "loss": loss / count,
        "top1": correct / count,
        "grad_norm": optax.global_norm(grads),
        "bad": (~batch["mask"]).sum(),
        "learning_rate": schedule(train_state.step),
    }
    return new_state, metrics


def _in_parts(x: Array, count: int, together: int = 1) -> Array:
    """Deal the rows of `x` out to `count` parts, each `together` neighbours to one: `[count, rows, ...]`."""
    dealt = jnp.moveaxis(x.reshape(-1, count, together, *x.shape[1:]), 1, 0)
    return dealt.reshape(count, -1, *x.shape[1:])


def compile_step(
    config: Config,
    graphdef: nnx.GraphDef[VideoModel],
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    target: TrainState,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """The jitted step, a function of state and batch.

    It keeps the state where `target` says and uses the old one's memory again.
    """
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        transform=transform,
        schedule=schedule,
        smoothing=config.train.label_smoothing,
        mix=config.train.mix,
        accumulate=config.train.accumulate,
        seed=config.train.seed,
    )
    functools.update_wrapper(step, train_step)  # traces and records of what is compiled say its name
    placed = (state.shardings_of(target), sharding.replicated(mesh))
    return jax.jit(
        sharding.using(mesh, step),
        donate_argnums=0,
        out_shardings=placed,
        compiler_options=sharding.compiler_options(mesh),
    )


# --------------------------------------------------------------------------------------------------
# The loop.


def train(config: Config, workdir: Path, profile: profiling.Steps | None = None) -> None:
    """Trains in `workdir`, going on from its newest checkpoint if it holds one, then evaluates.

    A trace of the steps of `profile` is written to its `tensorboard/`. Raises Stopped where a signal asked
    for it, when all that was done is saved.
    """
    with run.lock(workdir), Preemption() as preemption:
        _train(config, workdir, preemption, profile)


def _train(config: Config, workdir: Path, preemption: Preemption, profile: profiling.Steps | None) -> None:
    mesh = sharding.make_mesh(config.mesh)
    agreement.check_workdir(workdir)
    sharding.check_batch(config.train.global_batch // config.train.accumulate, "train.global_batch", mesh)
    sharding.check_batch(config.eval.batch, "eval.batch", mesh)
    dataset = open_dataset(config.data.name, config.data.data_dir, "train")
    validation = open_dataset(config.data.name, config.data.data_dir, "val")
    if config.data.flip:
        mirror.mirrored_labels(dataset.labels)  # refuses them before anything is written
    views.check(validation, config.data, config.eval)
    clips = len(dataset) * config.data.repeats
    steps = config.train.steps or round(config.train.epochs * clips / config.train.global_batch)
    if steps < 1:
        raise ConfigError(
            f"config: `train.epochs` = {config.train.epochs} of {len(dataset)} videos is not one step of "
            f"`train.global_batch` = {config.train.global_batch}"
        )

    start = checkpoint.find(workdir) or 0
    if profile is not None:
        profile.check_within(start, steps)
    earlier = run.RunRecord.read(workdir) if start else None
    record = run.RunRecord(config, run.Dataset.of(dataset), _backbone(config, earlier))
    if earlier:
        record.check_continues(earlier, workdir)
    agreement.check(record, validation.manifest["sha256"], mode="train", step=start)
    model = state.abstract_model(record)
    graphdef = nnx.graphdef(model)
    transform, schedule = optim.make_optimizer(config.train, steps)
    target = state.abstract_state(record, transform, mesh)
    _describe(config, model, target, dataset, mesh, steps)
    _warn_of_sampling(config, dataset)
    _warn_of_short_videos(config, dataset, validation)

    with contextlib.ExitStack() as stack:
        liveness.note("the first state", slow=True)
        if start:
            train_state, position = checkpoint.restore(workdir, start, target)
            log.info("going on from the checkpoint of step %d", start)
        else:
            # Before anything is written: a mistake found here leaves nothing behind.
            train_state = initial.initial_state(record, transform, target)
            position = {"next_step": 0, "bad": 0}
        checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint, start=start))
        if jax.process_index() == 0:
            record.write(workdir)
        stack.enter_context(kept(workdir))

        host_batches = pipeline.train_batches(
            dataset,
            config.data,
            seed=config.train.seed,
            global_batch=config.train.global_batch,
            num_steps=steps,
            rows=sharding.host_rows(mesh, config.train.global_batch),
        )
        host_batches.set_state(position)
        stack.callback(host_batches.close)
        batches = DevicePrefetch(
            host_batches, functools.partial(sharding.place_batch, mesh=mesh), ahead=config.data.prefetch
        )
        stack.callback(batches.close)
        writer = stack.enter_context(contextlib.closing(MetricsWriter(workdir, from_step=start)))
        progress = stack.enter_context(contextlib.closing(Progress("train", steps, start)))
        speed = Speed(config, model, mesh)
        monitor = Monitor(config, dataset, writer, progress, speed, last_step=steps, **position)
        stack.callback(monitor.close)
        trace = stack.enter_context(contextlib.closing(profiling.Trace(profile, workdir)))
        step_fn = compile_step(config, graphdef, transform, schedule, target, mesh)
        forward = evaluate.make_forward(graphdef, mesh)

        def validate(step: int) -> None:
            params = {**train_state.trainable, **train_state.frozen}
            go_on = functools.partial(preemption.check, step)  # what is evaluated has been saved
            figures = evaluate.evaluate(forward, params, validation, config.data, config.eval, mesh, go_on)
            monitor.note_compiled(step)
            writer.write(step, "val", figures | {"dataset": validation.manifest["sha256"]})
            log.info("step %d: %s", step, evaluate.summary(figures))
            monitor.restart_clock()

        def evaluation_due(step: int) -> bool:
            every = config.train.eval_every_steps
            return step == steps or (every > 0 and step % every == 0)

        own = evaluations.Setting.of(config.eval, validation.manifest["sha256"])
        if start and evaluation_due(start) and not evaluations.was_evaluated(workdir, start, own):
            validate(start)  # the run was stopped between its checkpoint and its evaluation
        for step in range(start + 1, steps + 1):
            with trace.step(step):
                # A worker process starts before the first batch; and the first two wait for compiling.
                liveness.note(f"step {step}: its batch", slow=step == start + 1)
                batch = monitor.next_batch(batches)
                liveness.note(f"step {step}: computing", slow=step <= start + 2)
                train_state, metrics = monitor.dispatch(step, step_fn, train_state, batch)
                # Reads the step before this one, which runs meanwhile.
                monitor.push(step, metrics, batch["index"])
            trace.end_step(step, metrics)
            stopping = preemption.reached()
            if stopping or evaluation_due(step) or step % config.checkpoint.every_steps == 0:
                monitor.flush()  # what is saved has been seen to be finite
                writer.settle()
                liveness.note(f"step {step}: its checkpoint", slow=True)
                checkpoints.save(step, train_state, {"next_step": step, "bad": monitor.bad})
            checkpoints.check()
            if stopping:
                raise preemption.stopped(step)
            if evaluation_due(step):
                validate(step)
        liveness.note("the end", slow=True)
    if jax.process_index() == 0:
        report.write_own(workdir)


def _backbone(config: Config, earlier: run.RunRecord | None) -> Backbone:
    """A run that goes on has its weights in its checkpoint: the file they came from may be gone."""
    pretrained = config.model.pretrained
    if earlier and pretrained != "random" and not Path(pretrained).exists():
        return earlier.backbone
    return initial.find_backbone(config.model)


def _warn_of_sampling(config: Config, dataset: VideoDataset) -> None:
    # The other way round it is a choice: of the published recipes for Kinetics some sample uniformly.
    if dataset.manifest["sampling"] == "uniform" and config.data.sampling == "dense":
        log.warning(
            "`data.sampling` is dense, but the labels of %s are of whole videos: set `data.sampling=uniform`",
            config.data.name,
        )


def _warn_of_short_videos(config: Config, *datasets: VideoDataset) -> None:
    span = sampling.span(config.data.num_frames, config.data.sampling, config.data.stride)
    for dataset in datasets:
        if short := dataset.short(span):
            log.warning(
                "%d of the %d videos of `%s` are shorter than a clip (%d frames): their frames are repeated",
                short,
                len(dataset),
                dataset.split,
                span,
            )


def _describe(
    config: Config,
    model: VideoModel,
    target: TrainState,
    dataset: VideoDataset,
    mesh: jax.sharding.Mesh,
    steps: int,
) -> None:
    """Says what is about to run: the figures a user would otherwise have to work out."""
    trainable, frozen = (
        sum(math.prod(leaf.shape) for leaf in part.values()) for part in (target.trainable, target.frozen)
    )
    compression = config.model.compression
    frames = config.data.num_frames
    log.info(
        "%s, %s, compression %s after %s: %.2f M parameters train, %.2f M do not; %.3f GMACs per view of "
        "%d frames",
        config.model.backbone,
        config.model.adaptation,
        compression.kind,
        compression.after or "no block",
        trainable / 1e6,
        frozen / 1e6,
        model.macs(frames) / 1e9,
        frames,
    )
    log.info(
        "%s: %d videos, %d classes; %d steps of %d videos (%.1f epochs) on %d %s, mesh %s",
        config.data.name,
        len(dataset),
        len(dataset.labels),
        steps,
        config.train.global_batch,
        steps * config.train.global_batch / (len(dataset) * config.data.repeats),
        mesh.size,
        "device" if mesh.size == 1 else "devices",
        dict(mesh.shape),
    )
