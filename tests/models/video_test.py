import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import Compression, Model, StAdapter
from inti_jax.config.backbones import BACKBONES, published
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel, normalize
from tests.configs import FAMILIES, SHALLOW
from tests.cost.compiled import call, initialize, products


def build(
    kind="none", after=(), backbone="tiny", group=2, start="mean", dtype=jnp.float32, **changes
) -> VideoModel:
    compression = Compression(kind=kind, after=after, group=group, start=start)
    settings = Model(backbone=backbone, pretrained="random", compression=compression, **changes)
    return VideoModel(settings, 10, dtype=dtype, rngs=make_rngs(0))


def make_model(*arguments, **changes) -> VideoModel:
    return initialize(lambda: build(*arguments, **changes))


def make_video(frames=8, batch=2):
    pixels = jax.random.randint(jax.random.key(0), (batch, frames, 32, 32, 3), 0, 256)
    return pixels.astype(jnp.uint8)


def abstract(*arguments, **changes) -> VideoModel:
    return nnx.eval_shape(lambda: build(*arguments, **changes))


@pytest.fixture
def two_blocks(monkeypatch):
    """Of the tiny model, which is compiled sooner."""
    monkeypatch.setitem(BACKBONES, "tiny", SHALLOW)


def test_normalize_is_clips_scale():
    pixels = jnp.asarray([[[0, 128, 255]]], jnp.uint8)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.array([[[0, 128, 255]]]) / 255 - mean) / std
    np.testing.assert_allclose(normalize(pixels, published("tiny"), jnp.float32), expected, rtol=1e-5)


@pytest.mark.usefixtures("two_blocks")
def test_without_compression_the_order_of_frames_does_not_matter():
    model, video = make_model(), make_video()
    np.testing.assert_allclose(call(model, video), call(model, video[:, ::-1]), atol=1e-5)


@pytest.mark.usefixtures("two_blocks")
def test_equal_frames_give_the_feature_of_the_image():
    model = make_model()
    image = make_video(frames=1)
    feature = call(model.tower, normalize(image[:, 0], published("tiny"), jnp.float32))
    repeated = call(model, jnp.repeat(image, 4, axis=1), method="features")
    assert np.linalg.norm(repeated - feature) < 1e-6 * np.linalg.norm(feature)


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("adaptation", ["full", "st_adapter"])
def test_the_frames_features_are_what_is_averaged(adaptation):
    model, video = make_model("inti", (1,), adaptation=adaptation), make_video()
    frames = call(model, video, method="frame_features")
    assert frames.shape == (2, 4, 96) and frames.dtype == jnp.float32
    mean = frames.mean(axis=1)
    if adaptation == "st_adapter":  # normalises the mean
        mean = call(model.tower.ln_post, mean)
    np.testing.assert_allclose(call(model, video, method="features"), mean, atol=1e-5)


@pytest.mark.parametrize("kind", ["inti", "mean", "static"])
def test_compressing_equal_frames_changes_nothing(kind):
    """A blend of equal frames is that frame, whatever the weights."""
    video = jnp.repeat(make_video(frames=1), 9, axis=1)
    compressed = make_model(kind, (1, 3), group=3)
    rng = np.random.default_rng(0)
    for _, parameter in nnx.to_flat_state(nnx.state(compressed.compressors, nnx.Param)):
        parameter[...] = parameter[...] + rng.standard_normal(parameter.shape, np.float32)
    plain = make_model()
    nnx.update(plain.tower, nnx.state(compressed.tower))
    features = [call(model, video, method="features") for model in (compressed, plain)]
    np.testing.assert_allclose(*features, atol=1e-5)


@pytest.mark.parametrize("kind", ["inti", "mean", "static", "drop"])
@pytest.mark.parametrize(("group", "frames"), [(2, 4), (2, 20), (3, 9), (3, 36), (4, 16)])
def test_one_set_of_weights_takes_any_multiple_of_the_ratio(kind, group, frames):
    model = abstract(kind, (1, 3), group=group)
    assert model.ratio == group**2 and frames % model.ratio == 0
    video = jax.ShapeDtypeStruct((2, frames, 32, 32, 3), jnp.uint8)
    found = jax.eval_shape(lambda model, video: model.frame_features(video), model, video)
    assert found.shape == (2, frames // group**2, 96)


def test_each_compressor_has_a_ratio_of_its_own():
    def mixed() -> VideoModel:
        model, other = (build("inti", (1, 3), group=group) for group in (2, 3))
        model.compressors[1] = other.compressors[1]
        return model

    model = initialize(mixed)
    assert model.ratio == 6
    assert [(stage.blocks, stage.frames) for stage in model.stages(12)] == [
        (range(1), 12),
        (range(1, 3), 6),
        (range(3, 4), 2),
    ]
    assert [cost.frames for cost in model.block_costs(12)] == [12, 6, 6, 2]
    video = make_video(frames=12, batch=1)
    found = call(model, video, method="frame_features")
    assert found.shape == (1, 2, 96)
    # Each of the two frames is made of six.
    again = call(model, jnp.concatenate([video[:, :6], video[:, :6]], axis=1), method="frame_features")
    np.testing.assert_allclose(again[:, 0], found[:, 0], atol=1e-5)
    assert np.abs(again[:, 1] - found[:, 1]).max() > 1e-3


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("kind", ["none", "inti"])
def test_remat_changes_no_gradient(kind):
    after = () if kind == "none" else (1,)
    gradients, recomputed = [], []
    for remat in (False, True):
        graphdef, params = nnx.split(make_model(kind, after, remat=remat))
        loss = lambda params, graphdef=graphdef: jnp.square(nnx.merge(graphdef, params)(make_video(2))).sum()  # noqa: E731
        recomputed.append(str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general"))
        gradients.append(jax.jit(jax.grad(loss))(params))
    assert recomputed[1] > recomputed[0]  # matrix products too, and not just what lies between them
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


@pytest.mark.usefixtures("two_blocks")
def test_bfloat16_computes_in_bfloat16_and_stays_close():
    exact, rounded = (make_model("inti", (1,), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rounded, nnx.Param))} == {jnp.dtype("float32")}
    assert jax.eval_shape(rounded.tower.blocks[0], jnp.ones((1, 17, 96), jnp.bfloat16)).dtype == jnp.bfloat16
    logits = call(rounded, make_video())
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - call(exact, make_video())).max()
    assert 0 < difference < 0.1


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize(
    "changes",
    [
        {"adaptation": "aim"},
        {"adaptation": "lora"},
        {"adaptation": "st_adapter"},
        {"adaptation": "linear", "temporal": "attention"},
        {"adaptation": "full", "temporal": "conv"},
    ],
    ids=str,
)
def test_what_a_method_adds_starts_as_nothing(changes):
    """ST-Adapter averages before it normalises: that alone is kept apart here."""
    adapted, plain = make_model(**changes), make_model()
    nnx.update(plain.tower, nnx.state(adapted.tower))
    plain.mean_first = adapted.mean_first
    features = [call(model, make_video(), method="features") for model in (adapted, plain)]
    assert np.linalg.norm(features[0] - features[1]) < 1e-6 * np.linalg.norm(features[1])


@pytest.mark.usefixtures("two_blocks")
def test_a_temporal_embedding_takes_another_number_of_frames():
    model = make_model(adaptation="aim")
    model.temporal.embedding[...] = jnp.linspace(jnp.zeros(96), 1, 8)
    known, longer = (np.asarray(model.temporal(frames)) for frames in (8, 16))
    np.testing.assert_array_equal(known, model.temporal.embedding[...])
    assert longer.shape == (16, 96) and (np.diff(longer[:, 0]) >= 0).all()
    assert jax.eval_shape(model, make_video(16)).shape == (2, 10)


@pytest.mark.parametrize(
    ("method", "kind", "start", "family"),
    [
        ("full", "tome", "mean", "dinov2"),
        ("aim", "inti", "mean", "clip"),
        ("st_adapter", "inti", "first", "siglip"),
        ("zero_i2v", "static", "first", "clip"),
        ("lora", "drop", "mean", "patches"),
    ],
)
def test_a_parameters_type_is_that_of_its_update(method, kind, start, family, monkeypatch):
    """An update makes a weak type a strong one, for which the step would be compiled again."""
    monkeypatch.setitem(
        BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=2, **FAMILIES[family])
    )
    after = () if kind in ("none", "tome") else (1,)
    params = jax.eval_shape(
        lambda: nnx.state(build(kind, after, start=start, adaptation=method), nnx.Param).to_pure_dict()
    )
    assert not [path for path, leaf in jax.tree.leaves_with_path(params) if leaf.weak_type]


# Costs: 1 MAC is one multiply-accumulate, as the published tables count.


@pytest.mark.parametrize(
    ("backbone", "gmacs", "after", "share"),
    [("clip_vit_b16", 17.563, (3,), 0.6275), ("clip_vit_l14", 81.012, (6,), 0.6257)],
)
def test_the_analytic_cost_is_the_published_one(backbone, gmacs, after, share):
    model = abstract(backbone=backbone)
    head = 10 * model.size.width
    assert (model.macs(8) - head) / 8e9 == pytest.approx(gmacs, abs=5e-4)
    dropping = abstract("drop", after, backbone=backbone)
    inti = abstract("inti", after, backbone=backbone)
    assert (dropping.macs(8) - head) / (model.macs(8) - head) == pytest.approx(share, abs=5e-5)
    own = inti.macs(8) - dropping.macs(8)
    assert 0 < own < 0.01 * model.macs(8)


# Added modules and compressors that compute more than matrix products: so much for each frame.
ST_WIDTH = 24


def elementwise(method, kind, frames, tokens, patches, *, width=ST_WIDTH, merged=0):
    """The multiply-accumulates of a model with 2 blocks, compressed after the first, that are no products.

    `width` is that of ST-Adapter, and `merged` the patches of a frame that ToMe merges in each block.
    """
    counts = {
        "mean": frames * tokens * 96,
        "static": frames * tokens * 96,
        # The blend, and two convolutions over the grid for each pair, 2 * 64 channels wide.
        "inti": frames * tokens * 96 + frames // 2 * patches * 2 * 9 * 128,
    }
    second = frames if kind in ("none", "tome") else frames // 2
    convolved = 3 * width * (frames * (patches - merged) + second * (patches - 2 * merged))
    return counts.get(kind, 0) + (convolved if method == "st_adapter" else 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("full", "none"),
        ("linear", "inti"),
        ("aim", "tome"),
        ("st_adapter", "drop"),
        ("zero_i2v", "mean"),
        ("lora", "static"),
    ],
)
def test_the_cost_is_that_of_all_products(method, kind, family, monkeypatch):
    small = dataclasses.replace(BACKBONES["tiny"], layers=2, **FAMILIES[family])
    monkeypatch.setitem(BACKBONES, "tiny", small)
    after = () if kind in ("none", "tome") else (1,)
    model = abstract(kind, after, adaptation=method, st_adapter=StAdapter(width=ST_WIDTH))
    graphdef, params = nnx.split(model)
    video = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.uint8)
    counted = products(lambda params, video: nnx.merge(graphdef, params)(video), params, video)
    assert counted + elementwise(method, kind, 8, model.tower.tokens, 16) == model.macs(8)
