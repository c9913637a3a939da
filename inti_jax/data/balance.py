"""Sample all classes equally often in an epoch, and count an epoch's clips by label."""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from inti_jax import config
from inti_jax.data.augmentation import opposites

# Draws of a class that share one random generator. Otherwise a class of one video would take one for each.
_BLOCK = 256


class Epoch(NamedTuple):
    """The videos of an epoch, in order.

    `again` counts how often each was drawn earlier in the same epoch.
    """

    video: Int32[np.ndarray, " N"]
    again: Int32[np.ndarray, " N"]


class Balanced:
    """Class-balanced epochs: N draws from N videos, the same number of each class to within one.

    In a turn of a class, each of its videos comes once, in a new random order. A turn that an epoch cuts off
    continues in the next epoch. Over several epochs, too, the numbers of draws of the classes differ by at
    most one. An epoch is a function of the seed and its number. Classes without videos are left out.
    """

    def __init__(self, classes: Int[np.ndarray, " N"], seed: int):
        self._classes, self._seed = classes, seed
        self._members = [np.flatnonzero(classes == k) for k in np.unique(classes)]
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def __reduce__(self) -> Any:
        return Balanced, (self._classes, self._seed)

    def _epoch(self, number: int) -> Epoch:
        drawn = [self._drawn(place, members, number) for place, members in enumerate(self._members)]
        order = np.random.default_rng((self._seed, number)).permutation(len(self._classes))
        return Epoch(*(np.concatenate(part).astype(np.int32)[order] for part in zip(*drawn, strict=True)))

    def _drawn(self, place: int, members: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws of the class at `place` in `epoch`, as the fields of an Epoch."""
        draws = np.arange(self._before(place, epoch), self._before(place, epoch + 1))
        count = len(members)
        turns = max(_BLOCK // count, 1)
        blocks, within = np.divmod(draws, turns * count)
        slot = np.empty_like(draws)
        for block in np.unique(blocks):
            entropy = np.random.SeedSequence((self._seed, place, int(block)), spawn_key=(1,))
            order = np.random.default_rng(entropy).permuted(np.tile(np.arange(count), (turns, 1)), axis=1)
            slot[blocks == block] = order.reshape(-1)[within[blocks == block]]
        turn = draws // count
        first = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(first, slot, turn)
        return members[slot], turn - first[slot]

    def _before(self, place: int, epoch: int) -> int:
        """Count the draws of a class before `epoch`; the remainders go to the classes in turn."""
        each, left = divmod(len(self._classes), len(self._members))
        return epoch * each + (epoch * left - place + len(self._members) - 1) // len(self._members)


def expected_counts(
    classes: Int[np.ndarray, " N"] | Bool[np.ndarray, "N K"], labels: tuple[str, ...], cfg: config.Data
) -> Float[np.ndarray, " K"]:
    """Count the clips of an epoch by training label, for K labels.

    `classes` are those of `VideoDataset.classes`. A clip counts for each of its labels. With `cfg.balance`,
    `cfg.flip` or `cfg.reverse` the counts are means.
    """
    if classes.ndim == 2:
        counts = classes.sum(axis=0).astype(np.float64)
    else:
        counts = np.bincount(classes, minlength=len(labels)).astype(np.float64)
    if cfg.balance:
        counts = np.where(counts > 0, len(classes) / np.count_nonzero(counts), 0.0)
    for exchanged in opposites.find(labels, cfg):  # half of the clips have the opposite label
        partners = [exchanged.get(label, label) for label in range(len(labels))]
        counts = (counts + counts[partners]) / 2
    return counts
