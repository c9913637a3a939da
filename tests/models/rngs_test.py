import jax
from flax import nnx

from inti_jax.models.rngs import make_rngs


def test_keys_are_those_of_flax():
    ours, theirs = make_rngs(7), nnx.Rngs(7)
    traced = jax.jit(lambda: make_rngs(7).params())()
    for name in ("params", "params", "dropout"):
        assert getattr(ours, name)() == getattr(theirs, name)()
    assert traced == nnx.Rngs(7).params()
