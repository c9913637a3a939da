"""How a run starts: from random weights, or from converted ones."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from inti_jax import config, state
from inti_jax.config import ConfigError
from inti_jax.errors import UserError
from inti_jax.models.backbone import BACKBONES, Backbone
from inti_jax.pretrained import text_head
from inti_jax.pretrained.api import load_clip
from inti_jax.pretrained.file import ClipFile
from inti_jax.pretrained.loading import load_tower
from inti_jax.run import RunRecord
from inti_jax.state import Params, TrainState

log = logging.getLogger("inti_jax")


def find_backbone(model: config.Model) -> Backbone:
    """What `model.pretrained` says of its weights. Raises UserError where it is another backbone's."""
    if model.pretrained == "random":
        return Backbone()
    if not Path(model.pretrained).is_file():
        raise ConfigError(
            f"config: `model.pretrained` is {model.pretrained!r}: there is no such file; "
            "`python -m inti_jax.convert SRC --out F.safetensors` makes one"
        )
    file = ClipFile(model.pretrained)
    architecture = file.description.architecture
    wanted = dataclasses.replace(BACKBONES[model.backbone], resolution=architecture.image.resolution)
    if architecture.image != wanted:
        raise ConfigError(
            f"config: `model.backbone` is {model.backbone}, but {model.pretrained} holds {architecture.image}"
        )
    embed = None
    if model.head.init == "text":
        if architecture.text is None or file.description.vocabulary is None:
            raise ConfigError(
                f'config: `model.head.init` is "text", but {model.pretrained} has no text tower with its '
                "vocabulary: convert a whole CLIP, with --vocab where its files lack one"
            )
        embed = architecture.embed
    return Backbone(architecture.numerics, file.description.mean, file.description.std, embed, file.hash)


def initial_state(
    record: RunRecord, transform: optax.GradientTransformation, target: TrainState
) -> TrainState:
    """The state before the first step, each part where `target` says it lives.

    Nothing is made anywhere but in its place: no device ever holds more than its own part. Raises UserError
    where a parameter that does not train would stay random.
    """
    shapes = {**target.trainable, **target.frozen}
    loaded = {} if record.config.model.pretrained == "random" else _pretrained(record, shapes)
    random = {path: shape for path, shape in shapes.items() if path not in loaded}
    if stuck := [path for path in random if path in target.frozen]:
        raise UserError(f"{record.config.model.pretrained} does not fill {stuck[0]}, which does not train")

    def create() -> Params:
        rngs = nnx.Rngs(record.config.train.seed)
        params = state.flatten(nnx.state(state.build_model(record, rngs), nnx.Param))
        return {path: params[path] for path in random}

    where = state.shardings_of(target)
    params = loaded | jax.jit(create, out_shardings={path: leaf.sharding for path, leaf in random.items()})()
    trainable = {path: params[path] for path in target.trainable}
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), where.step),
        trainable=trainable,
        frozen={path: params[path] for path in target.frozen},
        opt_state=jax.jit(transform.init, out_shardings=where.opt_state)(trainable),
    )


def _pretrained(record: RunRecord, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    model = record.config.model
    # The text tower first, so that it is gone before the image tower is read.
    head = _text_head(record, shapes) if model.head.init == "text" else {}
    side = record.config.data.resolution // BACKBONES[model.backbone].patch
    shardings = {path: shape.sharding for path, shape in shapes.items()}
    tower, coverage = load_tower(model.pretrained, shapes, shardings, grid=(side, side))
    log.info("%s: %s", model.pretrained, coverage)
    if head:
        log.info("the classifier starts from the names of %d classes", len(record.dataset.labels))
    return tower | head


def _text_head(record: RunRecord, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    clip = load_clip(record.config.model.pretrained)
    names = [label.replace("_", " ") for label in record.dataset.labels]
    classes = text_head.class_embeddings(clip, names, record.config.model.head.templates)
    values = {
        "head.projection.kernel": clip.projection,
        "head.classes.kernel": classes.T,
        "head.logit_scale": np.log(np.float32(clip.logit_scale)),
    }
    return {
        path: jax.device_put(jnp.asarray(value, shapes[path].dtype), shapes[path].sharding)
        for path, value in values.items()
    }
