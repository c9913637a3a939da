"""What seeds mean, pinned: a change of any of these changes what every run computes."""

import hashlib

import numpy as np
import pytest

from inti_jax.config import Data, Erase, Jitter, Mesh, RandAugment
from inti_jax.data import pipeline
from inti_jax.data.augmentation import augment
from inti_jax.data.builders import motion_digits
from inti_jax.distributed import sharding
from tests.training.loop_test import make_batch, run_steps


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_the_order_of_training():
    order = pipeline.TrainOrder(13, seed=7, global_batch=4, num_steps=5)
    assert [order[k][:2] for k in range(20)] == ORDER


def test_an_augmented_clip():
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    cfg = Data(
        resolution=32,
        flip=True,
        rand_augment=RandAugment(ops=2, std=0.5),
        jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        erase=Erase(probability=1.0),
    )
    clip = augment.train_clip(frames, np.random.default_rng(3), cfg)
    assert digest(clip.frames) == "CLIP"


def test_a_rendered_video():
    assert digest(motion_digits.render("train", 5)) == "RENDERED"


def test_the_loss_of_a_step():
    import jax

    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    figures, _ = run_steps(mesh, make_batch(mesh))
    # Another processor's products differ in the last bits.
    assert [float(each["loss"]) for each in figures] == pytest.approx(LOSSES, rel=1e-4)
