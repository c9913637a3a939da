"""The attention kernel for TPUs, interpreted, against XLA's attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.extend.core import jaxprs_in_params

from inti_jax.config import Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.models import fused_attention
from tests.configs import SHALLOW
from tests.training.loop_test import make_batch, run_steps


def plain(qkv, size):
    q, k, v = jnp.unstack(rearrange(qkv, "b n (p a h) -> p b n a h", p=3, h=size))
    return rearrange(jax.nn.dot_product_attention(q, k, v), "b n a h -> b n (a h)")


def packed(tokens, heads, size, dtype=jnp.float32, frames=2):
    """Queries, keys and values, and the gradient of the output."""
    rng = np.random.default_rng(0)
    shapes = ((frames, tokens, parts * heads * size) for parts in (3, 1))
    return tuple(jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in shapes)


def both(attend, size, qkv, gradient):
    """The output and the gradient of the input."""
    mixed, back = jax.vjp(lambda qkv: attend(qkv, size), qkv)
    return mixed, *back(gradient)


def interpreted(qkv, size):
    return fused_attention.attend(qkv, size, True)


@pytest.mark.parametrize(("tokens", "heads", "size"), [(197, 2, 64), (65, 4, 32), (130, 1, 256)])
def test_it_attends_as_xla_does_forward_and_backward(tokens, heads, size):
    qkv, gradient = packed(tokens, heads, size)
    assert fused_attention.suits(tokens, heads, size, jnp.float32)
    for found, expected in zip(
        both(interpreted, size, qkv, gradient), both(plain, size, qkv, gradient), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_in_bfloat16_it_is_as_near_to_float32_as_xla_is():
    exact = both(plain, 64, *packed(197, 2, 64))
    arguments = packed(197, 2, 64, jnp.bfloat16)
    for found, other, right in zip(
        both(interpreted, 64, *arguments), both(plain, 64, *arguments), exact, strict=True
    ):
        error, usual = (np.abs(np.asarray(x, np.float32) - right).mean() for x in (found, other))
        assert error < 1.1 * usual


def test_frames_are_split_over_devices():
    mesh = sharding.make_mesh(Mesh(data=4, fsdp=2))
    qkv, gradient = packed(64, 2, 64, frames=8)
    run = jax.jit(sharding.using(mesh, functools.partial(both, interpreted, 64)))
    placed = jax.device_put((qkv, gradient), sharding.batch_sharding(mesh))
    for found, expected in zip(run(*placed), both(plain, 64, qkv, gradient), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
        assert found.sharding.spec[0] == ("data", "fsdp")


@pytest.mark.parametrize(
    ("tokens", "heads", "size", "suits"),
    [
        (197, 12, 64, True),  # B/16
        (257, 16, 64, True),  # L/14
        (8, 12, 64, False),  # attention over time: too short to be worth a program
        (257, 16, 80, False),  # H/14: heads do not fill tiles
        (1025, 16, 64, False),  # too much for a chip's memory
    ],
)
def test_it_is_for_frames_that_fit_and_heads_that_fill_tiles(tokens, heads, size, suits):
    assert fused_attention.suits(tokens, heads, size, jnp.bfloat16) == suits


@pytest.fixture
def kernels(monkeypatch):
    """The sizes of heads of the kernels that models were traced with.

    Models choose as on TPUs, where the kernel is chosen; here it is interpreted.
    """
    size = dataclasses.replace(SHALLOW, width=128, heads=2, patch=4)  # 65 tokens
    monkeypatch.setitem(BACKBONES, "tiny", size)
    traced = []
    attend = fused_attention.attend
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(
        fused_attention, "attend", lambda qkv, size: traced.append(size) or attend(qkv, size, True)
    )
    return traced


def losses(**settings):
    """The losses of ten steps, all of the schedule, on one batch of a video for each device."""
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    figures, _ = run_steps(mesh, make_batch(mesh, videos=4), steps=10, **settings)
    return np.array([step["loss"] for step in figures])


def test_ten_steps_have_the_losses_of_xlas_attention(kernels):
    found, expected = (losses(model__attention=choice) for choice in ("auto", "xla"))
    assert len(kernels) == SHALLOW.layers
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] < found[0]


def test_in_bfloat16_ten_steps_differ_less_than_they_do_between_seeds(kernels):
    bfloat16 = functools.partial(losses, train__dtype="bfloat16")
    found, expected = (bfloat16(model__attention=choice) for choice in ("auto", "xla"))
    assert len(kernels) == SHALLOW.layers
    other = bfloat16(model__attention="xla", train__seed=1)
    assert np.abs(found - expected).max() < 0.1 * np.abs(other - expected).max()


def test_it_says_what_it_reads_writes_and_computes():
    """XLA counts that for a kernel; a frame's tokens are padded to rows of 8."""
    qkv, gradient = packed(200, 2, 64, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(functools.partial(both, interpreted, 64))(qkv, gradient)
    kernels = found_in(jaxpr.jaxpr)
    assert [kernel.params["name"] for kernel in kernels] == ["attention", "attention_backward"]
    for kernel, products in zip(kernels, (2, 5), strict=True):
        moved = sum(one.aval.size * 2 for one in (*kernel.invars, *kernel.outvars))
        claimed = kernel.params["cost_estimate"]
        assert (claimed.bytes_accessed, claimed.flops) == (moved, products * 2 * 2 * 200**2 * 128)


def found_in(jaxpr):
    """The kernels that a program calls, also in what it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(equation)
        else:
            found += [kernel for inner in jaxprs_in_params(equation.params) for kernel in found_in(inner)]
    return found
