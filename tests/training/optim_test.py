import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inti_jax.config import ConfigError, Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.runs import checkpoint, state
from inti_jax.training import optim
from tests.configs import FAMILIES, INTI, record, tiny


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


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.1, 0.01), (1.0, 1.0)])
def test_the_schedule_starts_and_ends_at_shares_of_the_peak(start, end):
    settings = tiny(
        train__learning_rate=0.5, train__warmup_fraction=0.1, train__start_rate=start, train__end_rate=end
    )
    schedule = optim.make_schedule(settings.train, 100)

    def cosine(step):
        return 0.5 * (end + (1 - end) * (1 + np.cos(np.pi * (step - 10) / 90)) / 2)

    assert schedule(0) == pytest.approx(0.5 * start)
    assert schedule(5) == pytest.approx(0.5 * (start + 1) / 2)
    assert schedule(10) == pytest.approx(0.5)
    for step in (11, 55, 99):  # the last step is that of 99 finished ones
        assert schedule(step) == pytest.approx(cosine(step), abs=1e-7)
    assert schedule(100) == pytest.approx(0.5 * end, abs=1e-7)


def test_a_warmup_that_starts_somewhere_needs_steps():
    with pytest.raises(ConfigError, match=r"`train\.start_rate` is 0\.1 and `train\.warmup_fraction` is 0"):
        tiny(train__start_rate=0.1, train__warmup_fraction=0.0)


def adamw(param, grads, rates, decay, b1=0.8, b2=0.98, epsilon=1e-3):
    """AdamW, as in arXiv:1711.05101, algorithm 2."""
    mean = square = np.zeros_like(param)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
        direction = mean / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + epsilon)
        param = param - rate * (direction + decay * param)
    return param


def lion(param, grads, rates, decay, b1=0.8, b2=0.95):
    """Lion, as in arXiv:2302.06675, algorithm 2."""
    mean = np.zeros_like(param)
    for grad, rate in zip(grads, rates, strict=True):
        param = param - rate * (np.sign(b1 * mean + (1 - b1) * grad) + decay * param)
        mean = b2 * mean + (1 - b2) * grad
    return param


def sgd(param, grads, rates, decay, momentum=0.7):
    """SGD with momentum and L2 decay, as in PyTorch's documentation."""
    total = np.zeros_like(param)
    for grad, rate in zip(grads, rates, strict=True):
        total = momentum * total + grad + decay * param
        param = param - rate * total
    return param


@pytest.mark.parametrize(
    ("reference", "changes"),
    [
        (adamw, {"train__adamw__betas": (0.8, 0.98), "train__adamw__epsilon": 1e-3}),
        (lion, {"train__lion__betas": (0.8, 0.95)}),
        (sgd, {"train__sgd__momentum": 0.7}),
        (functools.partial(sgd, momentum=0.0), {"train__sgd__momentum": 0.0}),
    ],
    ids=["adamw", "lion", "sgd", "no_momentum"],
)
def test_an_optimizer_is_its_papers(reference, changes):
    name = getattr(reference, "__name__", "sgd")
    settings = tiny(
        train__optimizer=name,
        train__learning_rate=0.1,
        train__weight_decay=0.2,
        train__clip_norm=1e3,
        train__head_rate=3.0,
        **changes,
    )
    transform, schedule = optim.make_optimizer(settings.train, 4)
    rng = np.random.default_rng(0)
    first = {"head.kernel": rng.normal(size=(3, 2)), "head.bias": rng.normal(size=2)}
    grads = [{path: rng.normal(size=leaf.shape) for path, leaf in first.items()} for _ in range(4)]
    params = jax.tree.map(jnp.float32, first)
    opt_state = transform.init(params)
    for grad in grads:
        updates, opt_state = transform.update(jax.tree.map(jnp.float32, grad), opt_state, params)
        params = optax.apply_updates(params, updates)
    rates = [3 * float(schedule(step)) for step in range(4)]
    for path, decay in (("head.kernel", 0.2), ("head.bias", 0.0)):
        expected = reference(first[path], [grad[path] for grad in grads], rates, decay)
        np.testing.assert_allclose(params[path], expected, rtol=1e-5)
        assert np.abs(expected - first[path]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "changes", "moments"),
    [
        ("adamw", {}, 2),
        ("lion", {}, 1),
        ("sgd", {}, 1),
        ("sgd", {"train__sgd__momentum": 0.0}, 0),
    ],
)
def test_an_optimizers_state_is_sharded_counted_and_restored(name, changes, moments, tmp_path):
    settings = tiny(train__optimizer=name, **changes)
    mesh = sharding.make_mesh(Mesh(data=4, fsdp=2))
    transform, _ = optim.make_optimizer(settings.train, 4)
    target = state.abstract_state(record(settings), transform, mesh)
    size = sum(leaf.size for leaf in target.trainable.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(target.opt_state)) == pytest.approx(
        moments * size, abs=2
    )
    kernel = target.trainable["tower.blocks.0.mlp.fc.kernel"]
    like = [leaf for leaf in jax.tree.leaves(target.opt_state) if leaf.shape == kernel.shape]
    assert len(like) == 4 * moments and all(leaf.sharding == kernel.sharding for leaf in like)

    few = ("head.bias", "head.kernel")
    some = {path: jax.device_put(jnp.ones(target.trainable[path].shape)) for path in few}
    updated = transform.update(some, transform.init(some), some)[1]
    saved = state.TrainState(jnp.int32(1), some, {}, updated)
    with checkpoint.CheckpointManager(tmp_path, settings.checkpoint, start=None) as checkpoints:
        checkpoints.save(1, saved, {"next_step": 1, "bad": 0})
    restored, _ = checkpoint.restore(tmp_path, 1, saved)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


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


def test_the_pooling_is_behind_the_last_block_and_its_vectors_do_not_decay(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], **FAMILIES["siglip"]))
    settings = tiny(train__layer_decay=0.5)
    shapes = parameters.parameter_shapes(state.abstract_model(record(settings)))
    pooling = [path for path in shapes if path.startswith("tower.pooling.")]
    assert {optim.rates(settings.train, shapes)[path] for path in pooling} == {1.0}
    decays = optim.decayed(shapes)
    assert {path for path in pooling if decays[path]} == {
        f"tower.pooling.{name}.kernel" for name in ("attn.qkv", "attn.out", "mlp.fc", "mlp.proj")
    }


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
    for first, gradient, end in ((2.66, -1.0, np.log(100)), (2.66, 1.0, 0.0), (4.7, -1.0, 4.7)):
        params = {"head.logit_scale": jnp.float32(first), "head.kernel": jnp.full((2, 2), 4.0)}
        opt_state = transform.init(params)
        for _ in range(12):
            grads = jax.tree.map(lambda x, gradient=gradient: gradient * jnp.ones_like(x), params)
            updates, opt_state = transform.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            # One that starts above the range, as SigLIP's, does not grow.
            assert 0 <= params["head.logit_scale"] <= np.float32(max(first, np.log(100)))
        assert params["head.logit_scale"] == np.float32(end)
        assert np.abs(params["head.kernel"] - 4).max() > 1  # nothing else is limited
        for _ in range(30):
            grads = jax.tree.map(lambda x, gradient=gradient: -gradient * jnp.ones_like(x), params)
            updates, opt_state = transform.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        assert params["head.logit_scale"] != np.float32(end)
