"""Make a run's initial state from random weights, converted ones, or what another run trained."""

import dataclasses
import logging
from collections.abc import Mapping

import jax
import numpy as np
import optax
from flax import nnx

from inti_jax.config import ConfigError
from inti_jax.errors import UserError
from inti_jax.hub import names
from inti_jax.models import freezing, parameters
from inti_jax.models.parameters import Params
from inti_jax.models.rngs import make_rngs
from inti_jax.pretrained import loading, text_head
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.encoders import TextEncoder
from inti_jax.runs import state, trained_file
from inti_jax.runs.record import RunRecord
from inti_jax.runs.state import TrainState

log = logging.getLogger("inti_jax")


def initial_state(
    record: RunRecord, transform: optax.GradientTransformation, target: TrainState
) -> TrainState:
    """Make the state before the first step, with the shardings of `target`.

    Each device creates or reads only its own shards of the parameters. The exception is a head that starts
    from class names: its text tower is on one device of each process, before any other parameter is loaded.
    Raises UserError where a frozen parameter would stay random.
    """
    shapes = {**target.trainable, **target.frozen}
    loaded = {} if record.config.model.pretrained == "random" else _pretrained(record, shapes)
    if record.config.model.start_from:
        loaded |= _trained(record, target.trainable)
    random = {path: shape for path, shape in shapes.items() if path not in loaded}
    if stuck := [path for path in random if path in target.frozen]:
        raise UserError(
            f"{record.config.model.pretrained} has no values for {stuck[0]}, which does not train"
            + (
                " because of `model.freeze`: new parameters have to train"
                if record.config.model.freeze
                else ""
            )
        )

    def create() -> Params:
        rngs = make_rngs(record.config.train.seed)
        params = parameters.flatten(nnx.state(state.build_model(record, rngs), nnx.Param))
        return {path: params[path] for path in random}

    where = state.shardings_of(target)
    params = loaded | jax.jit(create, out_shardings={path: leaf.sharding for path, leaf in random.items()})()
    trainable = {path: params[path] for path in target.trainable}
    return TrainState(
        step=loading.place(lambda _: np.zeros((), np.int32), target.step, where.step),
        trainable=trainable,
        frozen={path: params[path] for path in target.frozen},
        opt_state=jax.jit(transform.init, out_shardings=where.opt_state)(trainable),
        ema=state.first_average(target, trainable),
    )


def _pretrained(record: RunRecord, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Load those of the parameters `shapes` that `model.pretrained` provides."""
    model = record.config.model
    classes = None
    if model.head.init == "text":
        names = [text_head.class_name(label) for label in record.dataset.labels]
        # No reference to the text tower is kept, so that it is freed before the image tower is read.
        classes = text_head.class_embeddings(
            TextEncoder(open_converted(model.pretrained)), names, model.head.templates
        )
    image = dataclasses.replace(record.backbone.size, resolution=record.config.data.resolution)
    shardings = {path: shape.sharding for path, shape in shapes.items()}
    params, coverage = loading.load(model.pretrained, shapes, shardings, grid=image.grid, classes=classes)
    log.info("%s: %s", model.pretrained, coverage)
    if classes is not None:
        log.info("initialising the classifier from the names of %d classes", len(classes))
    return params


def _trained(record: RunRecord, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Load the parameters of `model.start_from`; `shapes` are the run's trainable ones.

    Raises ConfigError where the file does not fit the run, or has a parameter that is frozen in it.
    """
    path = trained_file.locate(names.local_or_uri(record.config.model.start_from))
    theirs = trained_file.read_record(path)
    trained_file.check_fits(path, theirs, record)
    leaves = trained_file.leaves(path, theirs)
    if trained_file.is_whole(path):
        trained = freezing.trained(theirs.config.model, leaves)
        leaves = {name: read for name, read in leaves.items() if name in trained}
    # A trained file has only what trains, so one that this run writes would lack these.
    if frozen := sorted(leaves.keys() - shapes):
        raise ConfigError(
            f"config: `model.start_from` is {path}, which trained {frozen[0]} too, but here it is frozen: "
            "set `model.freeze`, `model.freeze_blocks` and `model.unfreeze_last` so that it trains"
        )
    params = {name: loading.place(read, shapes[name], shapes[name].sharding) for name, read in leaves.items()}
    log.info("starting the trained parameters from %s", path)
    return params
