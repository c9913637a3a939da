"""Pin the results of fixed seeds: a change of any of these changes what every run computes."""

import hashlib

import numpy as np
import pytest

from inti_jax.config import Data, Erase, Jitter, Mesh, RandAugment
from inti_jax.data import pipeline
from inti_jax.data.augmentation import augment
from inti_jax.data.builders import motion_digits
from inti_jax.data.codec.encode import encode
from inti_jax.distributed import sharding
from tests.training.loop_test import make_batch, run_steps


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_the_order_of_training():
    order = pipeline.TrainOrder(13, seed=7, global_batch=4, num_steps=5)
    assert [order[k][:2] for k in range(20)] == [
        (0, 6),
        (0, 8),
        (0, 0),
        (0, 7),
        (0, 4),
        (0, 1),
        (0, 10),
        (0, 3),
        (0, 12),
        (0, 2),
        (0, 5),
        (0, 9),
        (0, 11),
        (1, 7),
        (1, 8),
        (1, 1),
        (1, 11),
        (1, 12),
        (1, 0),
        (1, 6),
    ]


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
    assert digest(clip.frames) == "4e6f417c70d47a2f"


def test_a_rendered_video():
    frames = motion_digits.render("train", 5)
    assert digest(frames) == "5474e3d33f330205"
    # The file, as the locked FFmpeg encodes it.
    assert hashlib.sha256(encode(frames, motion_digits.FPS)).hexdigest()[:16] == "55cd5fbe5d0fbd17"


def test_the_loss_of_a_step():
    import jax

    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    figures, _ = run_steps(mesh, make_batch(mesh))
    # Another processor's products differ in the last bits.
    assert [float(each["loss"]) for each in figures] == pytest.approx(
        [2.3337340354919434, 1.9789810180664062], rel=1e-4
    )
