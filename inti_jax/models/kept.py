"""What a block's forward pass keeps for its backward pass; all else the backward pass computes again.

Named to be kept are the outputs of matrix products, or sums with them, and those of attention. Of these, what
no gradient depends on is not kept.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_NAME = "kept"

NOTHING = jax.checkpoint_policies.nothing_saveable
NAMED = jax.checkpoint_policies.save_only_these_names(_NAME)


def keep(x: Array) -> Array:
    return checkpoint_name(x, _NAME)
