"""The keys that modules are initialised with."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array


def make_rngs(seed: int) -> nnx.Rngs:
    """Flax's `nnx.Rngs(seed)`, with the same keys, but quick where a model is traced, as for its shapes.

    Flax's own count of keys asks traced values for their shardings, and to say that there are none JAX goes
    through all that was traced so far: that time grows with the square of the model's depth.
    """
    rngs = nnx.Rngs(seed)
    rngs.default = _CountedInPython(seed)  # type: ignore[attr-defined]
    return rngs


class _CountedInPython(nnx.RngStream):
    def __init__(self, seed: int):
        super().__init__(seed, tag="default")
        self.drawn = 0

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], np.uint32(self.drawn))
        self.drawn += 1
        return key
