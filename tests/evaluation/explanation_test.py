"""Explanations of a run's answers, as arrays and as a page."""

import html.parser
import importlib
import io
import re
import sys
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from PIL import Image

import inti_jax
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import explanation
from inti_jax.evaluation.classifier import VideoClassifier
from inti_jax.evaluation.explanation import Explainer
from inti_jax.models import parameters
from inti_jax.reports import animation
from inti_jax.reports.explanation_page import Page
from inti_jax.runs import state
from inti_jax.runs.record import RunRecord
from tests.configs import record, tiny

pytestmark = pytest.mark.usefixtures("shallow")

T, N = 8, 17


def explainer_of(run: RunRecord) -> Explainer:
    """An explainer of a model with random parameters."""
    abstract = state.abstract_model(run, folded=True)
    rng = np.random.default_rng(0)
    shapes = parameters.parameter_shapes(abstract)
    params = {path: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32) for path, leaf in shapes.items()}
    return Explainer(VideoClassifier(nnx.graphdef(abstract), params, run))


@pytest.fixture(scope="module")
def files(motion_data, tmp_path_factory):
    """Three videos, the one in the middle of which does not decode."""
    dataset = open_dataset("motion_digits", motion_data, "val")
    paths = [tmp_path_factory.mktemp("videos") / f"{name}.mp4" for name in "abc"]
    for index, path in enumerate(paths):
        path.write_bytes(b"no video" if index == 1 else dataset[index].video)
    return paths


@pytest.fixture(scope="module")
def found(trained_run, files):
    return inti_jax.explain(trained_run, files[0])


def test_a_file_is_explained_on_the_evaluations_middle_view(trained_run, files, found):
    model = inti_jax.load(trained_run)
    assert found.labels == model.labels
    np.testing.assert_allclose(model(found.frames), found.logits, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(), 1, atol=1e-5)
    # 19 frames, of which a clip spans 15: the second of two clips starts at the last place.
    assert found.numbers.tolist() == list(range(4, 19, 2))
    assert found.seconds[1] - found.seconds[0] == pytest.approx(2 / 12)


def test_an_array_is_explained_like_the_file_it_is_from(trained_run, found):
    again = inti_jax.explain(trained_run, found.frames)
    assert again.numbers.tolist() == list(range(T)) and again.seconds is None
    for field in ("logits", "shares", "rollout", "log_odds_effects"):
        np.testing.assert_allclose(getattr(again, field), getattr(found, field), atol=1e-5)


def test_the_arrays_have_the_shapes_that_they_are_said_to_have(found):
    assert found.prefix == ("class token",) and found.grid == (4, 4)
    (layer,) = found.layers
    assert layer.block == 1 and layer.weights.shape == (T // 2, N, 2) and found.ratio == 2
    assert found.shares.shape == found.rollout.shape == found.places.shape == (T, N)
    assert found.on_grid(found.rollout).shape == (T, 4, 4)
    np.testing.assert_allclose(found.shares.reshape(-1, 2, N).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.moveaxis(layer.weights, 2, 1).reshape(T, N), found.shares, atol=1e-6)
    assert found.frame_rollout.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.fates.sum(axis=1), 1)


def test_taking_a_frame_away_shows_its_neighbour_twice(trained_run, found):
    model = inti_jax.load(trained_run)
    for frame in range(T):
        without = found.frames.copy()
        without[frame] = without[frame - 1 if frame else 1]
        both = jax.nn.softmax(np.stack([found.logits, model(without)]))
        before, after = np.asarray(both, np.float64)[:, found.predicted]
        assert found.probability_effects[frame] == pytest.approx(before - after, abs=1e-5)
        fall = np.log(before / (1 - before)) - np.log(after / (1 - after))
        assert found.log_odds_effects[frame] == pytest.approx(fall, abs=1e-4)
    assert np.abs(found.log_odds_effects).max() > 1e-3
    expected = scipy.stats.spearmanr(found.frame_rollout, np.abs(found.log_odds_effects)).statistic
    assert found.rollout_correlation == pytest.approx(expected)


def test_a_frame_that_is_dropped_has_no_share_and_no_effect():
    settings = tiny(model__compression__kind="drop", model__compression__after=(1,), model__scan="on")
    frames = np.random.default_rng(0).integers(0, 256, (T, 32, 32, 3), np.uint8)
    found = explainer_of(record(settings))(frames)
    np.testing.assert_array_equal(found.shares, np.tile(np.arange(T) % 2 == 0, (N, 1)).T)
    assert np.abs(found.rollout[1::2]).max() == 0 == np.abs(found.log_odds_effects[1::2]).max()
    assert np.abs(found.log_odds_effects[::2]).min() > 0
    assert found.share_correlation > 0.8
    assert found.fates.tolist() == [[1, 0, 0], [0, 0, 1]] * 4


def test_equal_shares_have_no_rank_correlation():
    effects = np.random.default_rng(0).standard_normal(T)
    assert explanation.rank_correlation(np.full(T, 0.5), effects) is None
    assert explanation.rank_correlation(0.5 + 1e-9 * effects, effects) is None
    assert explanation.rank_correlation(effects**3, effects) == pytest.approx(1)


@pytest.mark.parametrize("video", [np.zeros((2, T, 32, 32, 3), np.uint8), np.zeros((3, 32, 32, 3), np.uint8)])
def test_what_is_not_one_clip_is_refused(trained_run, video):
    with pytest.raises(UserError, match=r"one video is explained at a time|a multiple of 2 frames, not 3"):
        inti_jax.explain(trained_run, video)


def test_a_file_that_does_not_decode_is_named(trained_run, files):
    with pytest.raises(UserError, match=rf"^{re.escape(str(files[1]))}: .*Invalid data"):
        inti_jax.explain(trained_run, files[1])


# As a command.


class Elements(html.parser.HTMLParser):
    """The elements of a page, and that each one that is opened is closed."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["explain", *map(str, words)])
    importlib.import_module("inti_jax.explain").main()


def test_the_module_of_the_command_is_the_function_too(trained_run, found, monkeypatch):
    module = importlib.import_module("inti_jax.explain")
    assert inti_jax.explain is module
    np.testing.assert_array_equal(inti_jax.explain(trained_run, found.frames).logits.shape, (10,))


def test_a_page_shows_what_could_be_explained(trained_run, files, found, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"^1 of 3 videos could not be explained$"):
        command(
            monkeypatch, "--checkpoint", trained_run, *files, "--out", out, "--animation", tmp_path / "a.gif"
        )
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 2 * T
    assert capsys.readouterr().err.count("error: ") == 1
    page = out.read_text()
    elements = Elements(page)
    # Nothing is loaded from anywhere, and each picture has words.
    assert "http" not in re.sub(r"http-equiv", "", page)
    sources = [attrs["src"] for tag, attrs in elements.elements if "src" in attrs]
    assert sources and all(source.startswith("data:image/") for source in sources)
    pictures = [attrs for tag, attrs in elements.elements if tag == "img"]
    assert len(pictures) == 2 * 2 * T and all(len(attrs["alt"]) > 20 for attrs in pictures)
    roles = [attrs for _, attrs in elements.elements if attrs.get("role") == "img"]
    assert len(roles) == 2 * (T // 2 + T) and all(attrs["aria-label"] for attrs in roles)
    assert str(files[0]) in elements.text and "b.mp4: " in elements.text and "Invalid data" in elements.text
    assert f"{found.labels[found.predicted]} {found.probabilities.max():.3f}" in elements.text
    assert f"share {found.frame_rollout[3]:.1%}" in elements.text
    assert f"{found.log_odds_effects[3]:+.3f}" in elements.text
    assert re.search(r"evaluation top-1 \d", elements.text)
    assert "does not compress" not in elements.text
    # Each picture's frame is in the style.
    classes = [attrs.get("class", "").split() for _, attrs in elements.elements]
    used = {name for names in classes if "picture" in names for name in names} - {"picture"}
    assert used == set(re.findall(r"\.(v\w+) \{ background-image", page))


def test_a_page_without_any_explanation_is_a_page(trained_run, files, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    with pytest.raises(UserError, match="1 of 1 videos could not be explained"):
        command(monkeypatch, "--checkpoint", trained_run, files[1], "--out", out)
    assert "No video could be explained" in Elements(out.read_text()).text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__temporal": "conv"},
            ["This model does not compress", "convolutions over time, which the heat maps do not follow"],
        ),
        (
            {"model__compression__kind": "tome", "model__compression__r": 4},
            ["Of 16 patches of a frame, 8 "],
        ),
        (
            {"model__compression__kind": "inti", "model__compression__after": (1, 2)},
            ["Layer 2, after block 2: 4 frames become 2", "Through all layers", "one of 2 frames"],
        ),
    ],
    ids=["none", "tome", "twice"],
)
def test_the_page_of_any_model(changes, words, found, tmp_path):
    run = record(tiny(**changes))
    page = Page(tmp_path, run)
    page.add(Path("<b>&.mp4"), explainer_of(run)(found.frames))
    page.write(tmp_path / "page.html")
    text = Elements((tmp_path / "page.html").read_text()).text
    assert all(part in text for part in [*words, "<b>&.mp4"]), text
    assert "evaluation none is recorded" in text


def test_an_animation_shows_each_frame_beside_its_heat(found, tmp_path):
    drawn = animation.beside(found)
    assert drawn.shape == (T, 224, 448, 3)
    left, right = np.split(drawn.astype(int), 2, axis=2)
    assert (np.abs(left - right).max(axis=(1, 2, 3)) > 20).all()
    animation.write(tmp_path / "a.gif", [drawn, drawn])
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 2 * T and image.size == (448, 224)
        assert image.info["duration"] == 250 and image.info["loop"] == 0
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - drawn[0]).mean() < 10
    animation.write(tmp_path / "a.mp4", [drawn, drawn])
    with av.open(io.BytesIO((tmp_path / "a.mp4").read_bytes())) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 2 * T and np.abs(frames[3].astype(int) - drawn[3]).mean() < 10


def test_wrong_usage_is_said_first(files, tmp_path, monkeypatch):
    page = ("--out", tmp_path / "page.html")
    for words, message in [
        (["--out", "page.htm"], r"--out page\.htm: the file's name should end in \.html"),
        ([*page, "--animation", "a.avi"], r"--animation a\.avi: .* end in \.gif or \.mp4"),
    ]:
        with pytest.raises(UsageError, match=message):
            command(monkeypatch, "--checkpoint", "run", files[0], *words)
