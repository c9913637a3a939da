"""Define the training step, a pure function of state and batch, and compile it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from inti_jax.config import Config, ConfigError, Mix
from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.runs import state
from inti_jax.runs.monitor import Metrics
from inti_jax.runs.record import RunRecord
from inti_jax.runs.state import TrainState
from inti_jax.training import ema, losses, mixing, optim
from inti_jax.training.losses import Loss, Targets

Batch = dict[str, Array]

# Stands in for the number of steps where that depends on the dataset: it changes only a constant in the
# learning rate of a step.
_SOME_STEPS = 1000


# JAX takes the value of such an option as a bool only.
_BOOLEANS = {"true": True, "false": False}


def train_step(
    train_state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef[VideoModel],
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss: Loss,
    mix: Mix,
    accumulate: int,
    seed: int,
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Compute one update from one global batch: `video` [B, T, H, W, 3], `label` [B] and `mask` [B].

    With several labels a video, `label` is [B, K] and True for those of each video. Returns the new state and
    the metrics. Rows with a false mask (videos that did not decode) have no weight. With `accumulate` > 1 the
    batch is processed in that many parts, one after another: the same update in less memory. `seed` and the
    step determine which rows are mixed, and how; dropout and stochastic depth depend on the part as well.
    `ema_decay` is that of the state's moving average.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), train_state.step)
    mixes = mix.mixup > 0 or mix.cutmix > 0

    def summed_loss(trainable: Params, part: dict[str, Any]) -> tuple[Array, Array]:
        model = parameters.merge(graphdef, {**trainable, **train_state.frozen})
        model_key = jax.random.split(jax.random.fold_in(step_key, part["part"]))[0]
        mixed = mixing.mix(part["video"], part["mask"], part["mix"]) if mixes else None
        logits = model(part["video"] if mixed is None else mixed.video, model_key if model.random else None)
        targets = Targets(part["label"], part["mask"], None if mixed is None else mixed.own)
        each = loss(logits, targets)
        correct = losses.first_is_right(logits, part["label"])
        return (each * part["mask"]).sum(), (correct & part["mask"]).sum()

    grad_fn = jax.value_and_grad(summed_loss, has_aux=True)
    rows: dict[str, Any] = {key: batch[key] for key in ("video", "label", "mask")}
    # Drawn for the whole batch, so that the draws do not depend on the number of parts.
    mix_key = jax.random.split(jax.random.fold_in(step_key, 0))[1]
    draws = mixing.draw(mix, rows["mask"].size // 2, mix_key) if mixes else None
    if accumulate == 1:
        first = rows | {"mix": draws, "part": jnp.zeros((), jnp.int32)}
        (total, correct), grads = grad_fn(train_state.trainable, first)
    else:
        # Row i, or pair i where pairs are mixed, goes to part i % accumulate: each device keeps its own rows.
        parts = {key: _in_parts(value, accumulate, 2 if mixes else 1) for key, value in rows.items()}
        parts |= {"mix": jax.tree.map(lambda x: _in_parts(x, accumulate), draws)}
        parts |= {"part": jnp.arange(accumulate)}
        zeros = jnp.zeros(()), jnp.zeros((), jnp.int32)
        (total, correct), grads = jax.lax.scan(
            lambda sums, part: (jax.tree.map(jnp.add, sums, grad_fn(train_state.trainable, part)), None),
            (zeros, jax.tree.map(jnp.zeros_like, train_state.trainable)),
            parts,
        )[0]
    count = jnp.maximum(batch["mask"].sum(), 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    updates, opt_state = transform.update(grads, train_state.opt_state, train_state.trainable)
    trainable = optax.apply_updates(train_state.trainable, updates)
    new_state = TrainState(
        step=train_state.step + 1,
        trainable=trainable,
        frozen=train_state.frozen,
        opt_state=opt_state,
        ema=ema.update(train_state.ema, trainable, ema_decay, train_state.step),
    )
    metrics = {
        "loss": total / count,
        "top1": correct / count,
        "grad_norm": optax.global_norm(grads),
        "bad": (~batch["mask"]).sum(),
        "learning_rate": schedule(train_state.step),
    }
    return new_state, metrics


def _in_parts(x: Array, count: int, together: int = 1) -> Array:
    """Deal the rows of `x` out to `count` parts, `together` neighbours at a time: `[count, rows, ...]`."""
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
    """Jit the training step as a function of state and batch.

    The new state has the shardings of `target` and reuses the memory of the old one.
    """
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        transform=transform,
        schedule=schedule,
        loss=losses.make(config.train, class_weights),
        mix=config.train.mix,
        accumulate=config.train.accumulate,
        seed=config.train.seed,
        ema_decay=config.train.ema,
    )
    functools.update_wrapper(step, train_step)  # names it in traces and in records of compilations
    placed = (state.shardings_of(target), sharding.replicated(mesh))
    return jax.jit(
        sharding.using(mesh, step),
        donate_argnums=0,
        out_shardings=placed,
        compiler_options=sharding.compiler_options(mesh) | _own_options(config),
    )


def check_compiler_options(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raise ConfigError where XLA for the devices of `mesh` lacks an option or value of the config."""
    if not config.train.compiler_options:
        return
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    try:
        jax.jit(lambda x: x, compiler_options=_own_options(config)).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"config: `train.compiler_options`: {error}") from None


def _own_options(config: Config) -> sharding.CompilerOptions:
    pairs = (option.split("=", 1) for option in config.train.compiler_options)
    return {name: _BOOLEANS.get(value, value) for name, value in pairs}


def lower_step(record: RunRecord, mesh: jax.sharding.Mesh) -> tuple[TrainState, jax.stages.Lowered]:
    """Lower the run's step for the devices of `mesh`, attached or not; return the state's shapes as well.

    Raises ConfigError where the batch does not suit the mesh, and for an option that the compiler lacks.
    """
    config = record.config
    check_compiler_options(config, mesh)
    sharding.check_batch(config.train.global_batch // config.train.accumulate, "train.global_batch", mesh)
    transform, schedule = optim.make_optimizer(config.train, config.train.steps or _SOME_STEPS)
    shapes = state.abstract_state(record, transform, mesh)
    graphdef = nnx.graphdef(state.abstract_model(record))
    step = compile_step(config, graphdef, transform, schedule, shapes, mesh)
    videos, data = config.train.global_batch, config.data
    rows = {
        "video": ((videos, data.num_frames, *data.height_width, 3), jnp.uint8),
        "label": ((videos, len(record.dataset.labels)), jnp.bool_)
        if config.train.multi_label
        else ((videos,), jnp.int32),
        "mask": ((videos,), jnp.bool_),
        "index": ((videos,), jnp.int32),
    }
    where = sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(*spec, sharding=where) for name, spec in rows.items()}
    return shapes, step.lower(shapes, batch)
