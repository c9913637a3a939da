"""The training step and the loop around it."""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from inti_jax import (
    agreement,
    announce,
    checkpoint,
    early_stop,
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
from inti_jax.data import balance, loading, mirror, pipeline, views
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
    class_weights: Float[Array, " K"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from one global batch: `video` [B, T, H, W, 3], `label` [B] and `mask` [B].

    Rows with a false mask (videos that did not decode) weigh nothing. With `accumulate` > 1 the batch is
    taken in that many parts, one after another: same update, less memory. Which rows are mixed, and how, is a
    function of `seed` and the step; dropout and stochastic depth also of the part. `class_weights` are
    factors on each video's loss, by its class; of a mixed video each class's loss has its own.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), train_state.step)
    mixes = mix.mixup > 0 or mix.cutmix > 0

    def summed_loss(trainable: Params, part: dict[str, Any]) -> tuple[Array, Array]:
        model = state.merge(graphdef, {**trainable, **train_state.frozen})
        model_key = jax.random.split(jax.random.fold_in(step_key, part["part"]))[0]
        mixed = mixing.mix(part["video"], part["mask"], part["mix"]) if mixes else None
        logits = model(part["video"] if mixed is None else mixed.video, model_key if model.random else None)

        def loss_of(label: Array) -> Array:
            loss = losses.cross_entropy(logits, label, smoothing)
            return loss if class_weights is None else loss * class_weights[label]

        loss = loss_of(part["label"])
        if mixed is not None:
            partner = loss_of(mixing.partners(part["label"]))
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
    class_weights: Float[np.ndarray, " K"] | None = None,
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
        class_weights=None if class_weights is None else jnp.asarray(class_weights),
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
    weights = _class_weights(config, dataset)
    steps = _steps(config, dataset)
    start = checkpoint.find(workdir) or 0
    earlier = run.RunRecord.read(workdir) if start else None
    record = run.RunRecord(config, run.Dataset.of(dataset), _backbone(config, earlier))
    if earlier:
        record.check_continues(earlier, workdir)
        if steps < start:
            raise ConfigError(
                f"config: `train.{'steps' if config.train.steps else 'epochs'}` asks for {steps} steps, and "
                f"{workdir} has done {start}: give as many or more, or choose another --workdir"
            )
    if profile is not None:
        profile.check_within(start, steps)
    agreement.check(record, validation.manifest["sha256"], mode="train", step=start)
    model = state.abstract_model(record)
    graphdef = nnx.graphdef(model)
    transform, schedule = optim.make_optimizer(config.train, steps)
    target = state.abstract_state(record, transform, mesh)
    announce.describe(config, model, target, dataset, mesh, steps)
    announce.imbalance(config, dataset, weights)
    announce.warn(config, dataset, validation)

    with contextlib.ExitStack() as stack:
        rows = sharding.host_rows(mesh, config.train.global_batch)
        # An evaluation's videos are loaded by the same processes as the training's.
        if workers := loading.worker_pool(config.data, len(rows)):
            stack.callback(workers.close)
        liveness.note("the first state", slow=True)
        if earlier:
            train_state, position = checkpoint.restore(workdir, start, target)
            announce.going_on(
                earlier.config,
                config,
                start=start,
                before=_steps(earlier.config, dataset),
                steps=steps,
                random=model.random,
            )
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
            rows=rows,
            classes=dataset.classes if config.data.balance else None,
            workers=workers,
        )
        host_batches.set_state(position)
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
        step_fn = compile_step(config, graphdef, transform, schedule, target, mesh, weights)
        forward = evaluate.make_forward(graphdef, mesh)

        def validate(step: int) -> None:
            params = {**train_state.trainable, **train_state.frozen}
            go_on = functools.partial(preemption.check, step)  # what is evaluated has been saved
            figures = evaluate.evaluate(
                forward, params, validation, config.data, config.eval, mesh, go_on, workers
            )
            monitor.note_compiled(step)
            writer.write(step, "val", figures | {"dataset": validation.manifest["sha256"]})
            log.info("step %d: %s", step, evaluate.summary(figures))
            monitor.restart_clock()
            writer.settle()  # what early stopping reads

        def evaluation_due(step: int) -> bool:
            every = config.train.eval_every_steps
            return step == steps or (every > 0 and step % every == 0)

        own = evaluations.Setting.of(config.eval, validation.manifest["sha256"])
        if start and evaluation_due(start) and not evaluations.was_evaluated(workdir, start, own):
            validate(start)  # the run was stopped between its checkpoint and its evaluation
        last = steps
        if 0 < start < steps and early_stop.reached(workdir, config.train, own, start):
            last = start  # it was at its end
        for step in range(start + 1, last + 1):
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
                if step < steps and early_stop.reached(workdir, config.train, own, step):
                    break
        liveness.note("the end", slow=True)
    if jax.process_index() == 0:
        report.write_own(workdir)


def _steps(config: Config, dataset: VideoDataset) -> int:
    """Count the run's steps. Raises ConfigError where its epochs are not one."""
    train = config.train
    steps = train.steps or round(train.epochs * len(dataset) * config.data.repeats / train.global_batch)
    if steps < 1:
        raise ConfigError(
            f"config: `train.epochs` = {train.epochs} of {len(dataset)} videos is not one step of "
            f"`train.global_batch` = {train.global_batch}"
        )
    return steps


def _class_weights(config: Config, dataset: VideoDataset) -> Float[np.ndarray, " K"] | None:
    chosen = config.train.class_weights
    if chosen == "none":
        return None
    return losses.class_weights(chosen, balance.expected_counts(dataset.classes, dataset.labels, config.data))


def _backbone(config: Config, earlier: run.RunRecord | None) -> Backbone:
    """A run that goes on has its weights in its checkpoint: the file they came from may be gone."""
    pretrained = config.model.pretrained
    if earlier and pretrained != "random" and not Path(pretrained).exists():
        return earlier.backbone
    return initial.find_backbone(config.model)
