"""A video model of one frame, which computes what its image tower computes."""

from pathlib import Path

import jax
from flax import nnx

from inti_jax.config import Mesh
from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.models.video import VideoModel
from inti_jax.runs import initial, state
from inti_jax.training import optim
from tests.configs import record, tiny


def one_frame_model(file: Path, backbone: str, resolution: int) -> VideoModel:
    """The model that training would start from, with the weights of the converted `file`."""
    settings = tiny(
        model__backbone=backbone,
        model__pretrained=str(file),
        model__adaptation="linear",
        data__num_frames=1,
        data__resolution=resolution,
    )
    run = record(settings, backbone=initial.find_backbone(settings.model))
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    transform, _ = optim.make_optimizer(settings.train, 1)
    first = initial.initial_state(run, transform, state.abstract_state(run, transform, mesh))
    return parameters.merge(nnx.graphdef(state.abstract_model(run)), first.trainable | first.frozen)
