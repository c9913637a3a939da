import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inti_jax.models import parameters
from inti_jax.runs import state
from inti_jax.training import optim
from tests.configs import INTI, record, tiny


@pytest.mark.parametrize("kind", ["none", "inti", "static"])
def test_decay_covers_every_parameter_and_spares_vectors(kind):
    after = () if kind == "none" else (1,)
    settings = tiny(model__compression__kind=kind, model__compression__after=after)
    shapes = parameters.parameter_shapes(state.abstract_model(record(settings)))
    decays = optim.decayed(shapes)
    assert decays.keys() == shapes.keys()
    assert decays["tower.blocks.0.attn.qkv.kernel"] and decays["head.kernel"]
    spared = {path for path, decay in decays.items() if not decay}
    assert {"tower.class_embedding", "tower.positional_embedding", "tower.ln_pre.scale"} <= spared
    one_dimensional = {path for path, shape in shapes.items() if len(shape.shape) == 1}
    assert one_dimensional <= spared


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"head\.novelty"):
        optim.decayed(["head.novelty"])


def test_the_schedule_warms_up_and_ends_at_zero():
    settings = tiny(train__learning_rate=0.5, train__warmup_fraction=0.1, train__steps=100)
    _, schedule = optim.make_optimizer(settings.train, 100)
    rates = np.array([schedule(step) for step in range(101)])
    assert rates[0] == 0 and rates[10] == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-6)
    assert rates[55] == pytest.approx(0.25, abs=0.01)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()


@pytest.mark.parametrize(("fraction", "steps"), [(1.0, 10), (0.95, 4), (0.9, 1), (1.0, 1)])
def test_a_schedule_that_is_all_warmup_ends_at_the_peak(fraction, steps):
    settings = tiny(train__learning_rate=0.5, train__warmup_fraction=fraction)
    _, schedule = optim.make_optimizer(settings.train, steps)
    rates = np.array([schedule(step) for step in range(steps)])
    np.testing.assert_allclose(rates, 0.5 * np.arange(steps) / (steps - 1) if steps > 1 else [0.5], rtol=1e-6)


def test_updates_are_clipped_adamw():
    settings = tiny(train__clip_norm=1.0, train__weight_decay=0.1, train__warmup_fraction=0.0)
    transform, schedule = optim.make_optimizer(settings.train, 10)
    params = {"head.kernel": jnp.full((2, 2), 3.0), "head.bias": jnp.full(2, 3.0)}
    big = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params)
    updates, _ = transform.update(big, transform.init(params), params)
    # The first Adam step is the sign of the gradient; decay adds its share to the kernel alone.
    rate = schedule(0)
    np.testing.assert_allclose(updates["head.bias"], -rate, rtol=1e-4)
    np.testing.assert_allclose(updates["head.kernel"], -rate * (1 + 0.1 * 3), rtol=1e-4)


def test_a_gradient_beyond_the_norm_counts_as_one_of_the_norm():
    def second_update(clip_norm, first):
        settings = tiny(train__clip_norm=clip_norm, train__warmup_fraction=0.0)
        transform, _ = optim.make_optimizer(settings.train, 10)
        params = {"head.kernel": jnp.zeros((2, 2))}
        _, opt_state = transform.update({"head.kernel": first}, transform.init(params), params)
        return transform.update({"head.kernel": jnp.full((2, 2), 0.1)}, opt_state, params)[0]["head.kernel"]

    big, unit = jnp.full((2, 2), 50.0), jnp.full((2, 2), 0.5)  # of norms 100 and 1
    np.testing.assert_allclose(second_update(1.0, big), second_update(1.0, unit), rtol=1e-5)
    assert np.abs(second_update(1e9, big) / second_update(1.0, big) - 1).min() > 0.1


def test_rates_go_by_group_and_by_depth():
    settings = tiny(
        train__tower_rate=0.5, train__added_rate=3.0, train__head_rate=10.0, train__layer_decay=0.5, **INTI
    )
    found = optim.rates(settings.train, parameters.parameter_shapes(state.abstract_model(record(settings))))
    assert found["head.kernel"] == 10 and found["compressors.0.down.kernel"] == 3
    blocks = [found[f"tower.blocks.{i}.mlp.fc.kernel"] for i in range(4)]
    assert blocks == [0.5 * 0.5**above for above in (4, 3, 2, 1)]
    assert found["tower.positional_embedding"] == found["tower.ln_pre.scale"] == 0.5 * 0.5**5
    assert found["tower.ln_post.scale"] == 0.5


def test_a_rate_scales_the_whole_update():
    def update(**changes):
        settings = tiny(train__warmup_fraction=0.0, train__weight_decay=0.1, **changes)
        transform, _ = optim.make_optimizer(settings.train, 10)
        params = {"head.kernel": jnp.full((2, 2), 3.0), "tower.ln_post.scale": jnp.ones(2)}
        return transform.update(params, transform.init(params), params)[0]

    plain, faster = update(), update(train__head_rate=4.0)
    np.testing.assert_allclose(faster["head.kernel"], 4 * plain["head.kernel"], rtol=1e-6)
    np.testing.assert_array_equal(faster["tower.ln_post.scale"], plain["tower.ln_post.scale"])


def test_the_scale_of_a_text_head_stays_in_clips_range():
    """Clamped after each step, as open_clip does it; what pulls it back in is not cut."""
    settings = tiny(train__learning_rate=0.5, train__warmup_fraction=0.0)
    transform, _ = optim.make_optimizer(settings.train, 1000)
    for first, gradient, end in ((2.66, -1.0, np.log(100)), (2.66, 1.0, 0.0), (4.7, -1.0, np.log(100))):
        params = {"head.logit_scale": jnp.float32(first), "head.kernel": jnp.full((2, 2), 4.0)}
        opt_state = transform.init(params)
        for _ in range(12):
            grads = jax.tree.map(lambda x, gradient=gradient: gradient * jnp.ones_like(x), params)
            updates, opt_state = transform.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            assert 0 <= params["head.logit_scale"] <= np.float32(np.log(100))
        assert params["head.logit_scale"] == np.float32(end)
        assert np.abs(params["head.kernel"] - 4).max() > 1  # nothing else is limited
        for _ in range(30):
            grads = jax.tree.map(lambda x, gradient=gradient: -gradient * jnp.ones_like(x), params)
            updates, opt_state = transform.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        assert params["head.logit_scale"] != np.float32(end)
