"""Train a run: the loop over its steps, with checkpoints and evaluations."""

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from inti_jax.config import Config, ConfigError
from inti_jax.data import balance, pipeline, views
from inti_jax.data.augmentation import opposites
from inti_jax.data.dataset import Source, Subset, VideoDataset, check_loss, open_configured
from inti_jax.data.loading.batches import worker_pool
from inti_jax.data.loading.device import DevicePrefetch
from inti_jax.distributed import agreement, liveness, sharding
from inti_jax.distributed.preemption import Preemption
from inti_jax.evaluation import evaluate
from inti_jax.reports import writing
from inti_jax.runs import checkpoint, evaluations, initial, layout, profiling, state
from inti_jax.runs.backbone import find_backbone, pin
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.compilation import cached
from inti_jax.runs.monitor import Monitor, Speed
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.runs.writers import metrics_writer
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.runs.writers.progress import Progress
from inti_jax.training import announce, blends, early_stop, losses, memory, optim
from inti_jax.training.train_step import check_compiler_options, compile_step

log = logging.getLogger("inti_jax")


def train(config: Config, workdir: Path, profile: profiling.Steps | None = None) -> None:
    """Train in `workdir`, from its newest checkpoint if it has one, and evaluate.

    Writes a trace of the steps of `profile` to `tensorboard/` in `workdir`. Raises Stopped where a signal
    asked to stop, once all that was done is saved.
    """
    with layout.lock(workdir), Preemption() as preemption:
        _train(config, workdir, preemption, profile)


def _train(config: Config, workdir: Path, preemption: Preemption, profile: profiling.Steps | None) -> None:
    metrics_writer.check(config)
    mesh = sharding.make_mesh(config.mesh)
    agreement.check_workdir(workdir)
    sharding.check_batch(config.train.global_batch // config.train.accumulate, "train.global_batch", mesh)
    sharding.check_batch(config.eval.batch, "eval.batch", mesh)
    check_compiler_options(config, mesh)
    dataset = open_configured(config.data, "train")
    validation = open_configured(config.data, "val")
    check_loss(dataset, config.train.loss)
    # Raises UserError before anything is written where a label has no partner to trade places with.
    opposites.find(dataset.labels, config.data)
    views.check(validation, config.data, config.eval)
    weights = _class_weights(config, dataset)
    steps = _steps(config, dataset)
    start = checkpoint.find(workdir) or 0
    earlier = RunRecord.read(workdir) if start else None
    config = pin(config, earlier)
    record = RunRecord(config, Dataset.of(dataset), find_backbone(config, earlier))
    if earlier:
        record.check_continues(earlier, workdir)
        if steps < start:
            raise ConfigError(
                f"config: `train.{'steps' if config.train.steps else 'epochs'}` asks for {steps} steps, but "
                f"{workdir} has already trained {start}: ask for at least {start}, or choose another "
                "--workdir"
            )
    if profile is not None:
        profile.check_within(start, steps)
    agreement.check(record.flat(), validation.manifest["sha256"], mode="train", step=start)
    model = state.abstract_model(record)
    transform, schedule = optim.make_optimizer(config.train, steps)
    target = state.abstract_state(record, transform, mesh)
    announce.describe(config, model, target, dataset, mesh, steps)
    announce.imbalance(config, dataset, weights)
    announce.warn(config, dataset, validation)

    with contextlib.ExitStack() as stack:
        rows = sharding.host_rows(mesh, config.train.global_batch)
        # Training and evaluations share the worker processes.
        if workers := worker_pool(config.data, len(rows)):
            stack.callback(workers.close)
        liveness.note("initial state", slow=True)
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
            # Made before anything is written, so that a mistake found here leaves nothing behind.
            train_state = initial.initial_state(record, transform, target)
            position = {"next_step": 0, "bad": 0}
        checkpoints = stack.enter_context(CheckpointManager(workdir, config.checkpoint, start=start))
        if jax.process_index() == 0:
            record.write(workdir)
        stack.enter_context(cached(workdir))
        graphdef = nnx.graphdef(state.abstract_model(memory.settle(record, mesh)))

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
        writer = stack.enter_context(contextlib.closing(MetricsWriter(workdir, config, from_step=start)))
        progress = stack.enter_context(contextlib.closing(Progress("train", steps, start)))
        speed = Speed(config, model, mesh)
        monitor = Monitor(config, dataset, writer, progress, speed, last_step=steps, **position)
        stack.callback(monitor.close)
        trace = stack.enter_context(contextlib.closing(profiling.Trace(profile, workdir)))
        step_fn = compile_step(config, graphdef, transform, schedule, target, mesh, weights)
        measure_blends = blends.compile_figures(graphdef, mesh) if blends.learned(model) else None
        forward = evaluate.make_forward(graphdef, mesh, evaluate.output_of(config.train))

        def validate(step: int, setting: evaluations.Setting) -> None:
            params = train_state.params(setting.weights)
            go_on = functools.partial(preemption.check, step)  # a stop loses nothing: the state is saved
            source = validation if setting.subset is None else subset
            figures, found = evaluate.evaluate(
                forward, params, source, config.data, config.eval, mesh, go_on, workers
            )
            monitor.note_compiled(step)
            if setting.subset is None:
                evaluate.keep(workdir, step, found, validation, config, setting)
            evaluate.write(writer, step, figures, setting, own)
            monitor.restart_clock()
            writer.settle()  # early stopping reads the records

        def evaluation_due(step: int) -> bool:
            every = config.train.eval_every_steps
            return step == steps or (every > 0 and step % every == 0)

        own = evaluations.Setting.of(config, validation.manifest["sha256"])
        during = own
        subset: Source = validation
        if 0 < config.train.eval_videos < len(validation):
            subset = Subset(validation, config.train.eval_videos)
            during = dataclasses.replace(own, subset=len(subset))

        def make_up(setting: evaluations.Setting) -> None:
            """Evaluate the checkpoint that the run goes on from, where it was stopped before it could."""
            for each in setting.made():
                # Not of an average that only starts here.
                there = each.weights == "raw" or checkpoint.has_average(workdir, start)
                if there and not evaluations.was_evaluated(workdir, start, each):
                    validate(start, each)

        if start and evaluation_due(start):
            make_up(own if start == steps else during)
        last = steps
        if 0 < start < steps and early_stop.reached(workdir, config.train, during, start):
            last = start  # it had stopped early
            make_up(own)
        if 0 < start < last:
            writer.write(start, "restart", {"devices": mesh.size, "processes": jax.process_count()})
        for step in range(start + 1, last + 1):
            with trace.step(step):
                # Worker processes start before the first batch, and the first two steps wait for compiling.
                liveness.note(f"step {step}: loading its batch", slow=step == start + 1)
                batch = monitor.next_batch(batches)
                liveness.note(f"step {step}: computing", slow=step <= start + 2)
                train_state, metrics = monitor.dispatch(step, step_fn, train_state, batch)
                blended = None
                if measure_blends is not None and monitor.logs(step):
                    # The first time, it is compiled.
                    slow = step <= start + config.train.log_every_steps
                    liveness.note(f"step {step}: measuring its blends", slow=slow)
                    raw = train_state.params("raw")
                    blended = monitor.dispatch(step, measure_blends, raw, batch["video"], batch["mask"])
                # Reads the metrics of the step before, while this step runs.
                monitor.push(step, metrics, batch["index"], blended)
            trace.end_step(step, metrics)
            stopping = preemption.reached()
            if stopping or evaluation_due(step) or step % config.checkpoint.every_steps == 0:
                monitor.flush()  # raises before a state whose loss is not finite is saved
                writer.settle()
                liveness.note(f"step {step}: saving its checkpoint", slow=True)
                checkpoints.save(step, train_state, {"next_step": step, "bad": monitor.bad})
            checkpoints.check()
            if stopping:
                raise preemption.stopped(step)
            if evaluation_due(step):
                ends = step == steps
                for setting in (own if ends else during).made():
                    validate(step, setting)
                if not ends and early_stop.reached(workdir, config.train, during, step):
                    if during != own:
                        for setting in own.made():
                            validate(step, setting)
                    break
        liveness.note("the end", slow=True)
    if jax.process_index() == 0:
        writing.write_own(workdir)


def _steps(config: Config, dataset: VideoDataset) -> int:
    """Compute the run's number of steps. Raises ConfigError where its epochs make less than one."""
    train = config.train
    steps = train.steps or round(train.epochs * len(dataset) * config.data.repeats / train.global_batch)
    if steps < 1:
        raise ConfigError(
            f"config: `train.epochs` = {train.epochs} of {len(dataset)} videos is less than one step of "
            f"`train.global_batch` = {train.global_batch}"
        )
    return steps


def _class_weights(config: Config, dataset: VideoDataset) -> Float[np.ndarray, " K"] | None:
    """Compute the weights of the classes in the loss, as the config chooses them; None: all 1."""
    chosen = config.train.class_weights
    if chosen == "none":
        return None
    counts = balance.expected_counts(dataset.classes, dataset.labels, config.data)
    if config.train.multi_label:
        return losses.positive_weights(chosen, counts, len(dataset))
    return losses.class_weights(chosen, counts)
