"""Choose the values that a block's forward pass keeps; the backward pass computes all others again.

`keep` marks the outputs of matrix products, or sums with them, and those of attention. A marked value on
which no gradient depends is not kept.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_NAME = "kept"

# Policies for `jax.checkpoint`: to keep nothing, or the values that `keep` marks.
NOTHING = jax.checkpoint_policies.nothing_saveable
NAMED = jax.checkpoint_policies.save_only_these_names(_NAME)


def keep(x: Array) -> Array:
    """Mark `x` as a value to keep for the backward pass."""
    return checkpoint_name(x, _NAME)
