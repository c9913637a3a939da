"""Make the random keys that modules are initialised with."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array


def make_rngs(seed: int) -> nnx.Rngs:
    """Make `nnx.Rngs(seed)` with the same keys as Flax's, but fast to trace, as for a model's shapes.

    Flax's own counter of keys asks traced values for their shardings. To find that there are none, JAX goes
    through everything traced so far, so the time grows with the square of the model's depth.
    """
    rngs = nnx.Rngs(seed)
    rngs.default = _CountedInPython(seed)  # type: ignore[attr-defined]
    return rngs


class _CountedInPython(nnx.RngStream):
    """A stream of keys that counts them in a Python integer."""

    def __init__(self, seed: int):
        super().__init__(seed, tag="default")
        self.drawn = 0

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], np.uint32(self.drawn))
        self.drawn += 1
        return key
