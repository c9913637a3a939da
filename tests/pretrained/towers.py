"""Compare towers with transformers', alone and as a video model of one frame, which computes the same."""

from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

from inti_jax.config import Mesh
from inti_jax.config.resolution import Resolution
from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.models.video import VideoModel
from inti_jax.runs import initial, state
from inti_jax.runs.backbone import find_backbone
from inti_jax.training import optim
from tests.configs import record, tiny


def images(side: int) -> np.ndarray:
    """Draw two normalised images [2, side, side, 3]."""
    return np.random.default_rng(1).standard_normal((2, side, side, 3)).astype(np.float32)


def pooled(model: torch.nn.Module, pixels: np.ndarray, **arguments: bool) -> np.ndarray:
    """Compute the pooled features [B, D] of a model of transformers."""
    with torch.no_grad():
        output = model(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **arguments)
    return output.pooler_output.numpy()


def gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Measure the largest difference of a row, as a share of the norm of the expected row."""
    return (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


def one_frame_model(
    file: Path, backbone: str, resolution: Resolution, *, classes: int = 10, **changes: object
) -> VideoModel:
    """Build the model that training would start from, with the weights of the converted `file`."""
    settings = tiny(
        model__backbone=backbone,
        model__pretrained=str(file),
        model__adaptation="linear",
        data__num_frames=1,
        data__resolution=resolution,
        **changes,
    )
    run = record(settings, classes, find_backbone(settings))
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    transform, _ = optim.make_optimizer(settings.train, 1)
    first = initial.initial_state(run, transform, state.abstract_state(run, transform, mesh))
    return parameters.merge(nnx.graphdef(state.abstract_model(run)), first.trainable | first.frozen)
