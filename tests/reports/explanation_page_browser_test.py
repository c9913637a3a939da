"""The page of explanations in a browser, of a clip whose arrays are made up."""

from pathlib import Path

import numpy as np
import pytest

from inti_jax.evaluation.explanation import Explanation, Layer
from inti_jax.reports.explanation_page import Page
from tests.browser import browser, opened  # noqa: F401 - a fixture
from tests.configs import INTI, record, tiny

T, GRID = 8, (6, 8)
LABEL = "<script>alert(1)</script>_a_label_that_is_very_long_and_has_no_spaces"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    tokens = 1 + GRID[0] * GRID[1]
    layers = tuple(
        Layer(block, rng.dirichlet((1, 1), (T // 2**block, tokens)).astype(np.float32)) for block in (1, 2)
    )
    effects = rng.standard_normal(T).astype(np.float32)
    explanation = Explanation(
        frames=rng.integers(0, 256, (T, 96, 128, 3), np.uint8),
        numbers=np.arange(T) * 1000,
        seconds=np.arange(T) * 1234.5,
        labels=(LABEL, "b", "c"),
        logits=np.array([3.0, 2, 1], np.float32),
        probabilities=np.array([0.7, 0.2, 0.1], np.float32),
        prefix=("class token",),
        grid=GRID,
        layers=layers,
        shares=rng.random((T, tokens)),
        rollout=rng.dirichlet(np.ones(T * tokens)).reshape(T, tokens),
        places=np.tile(np.arange(tokens), (T, 1)),
        log_odds_effects=effects,
        probability_effects=effects / 10,
    )
    out = tmp_path_factory.mktemp("page") / "explained.html"
    made = Page(out.parent / "<i>run</i>", record(tiny(**INTI)))
    for name in ("a.mp4", "folder/" * 20 + "<img src=x>.mp4"):
        made.add(Path(name), explanation)
    made.add_failed(Path("b.mp4"), "b.mp4: it does not decode")
    made.write(out)
    return out


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_every_picture_is_drawn_and_no_network_is_asked(browser, page, width, scheme):  # noqa: F811
    with opened(browser, page, width=width, scheme=scheme) as found:
        assert not found.problems and not found.requests
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = found.page.evaluate("[...document.images].map((i) => `${i.naturalWidth} ${i.naturalHeight}`)")
        # Of two videos: heat, two layers of 8 and 4 frames, and the shares through both.
        assert len(sizes) == 2 * (8 + 8 + 4 + 8) and set(sizes) == {"8 6"}
        boxes = found.page.evaluate(
            "[...document.querySelectorAll('.picture')].map((p) => [p.clientWidth, p.clientHeight,"
            " getComputedStyle(p).backgroundImage.startsWith('url(\"data:image/')])"
        )
        assert len(boxes) == len(sizes) + 2 * (4 + 2)  # and the frames that the layers make
        assert all(shown and w > 60 and h == pytest.approx(0.75 * w, abs=1) for w, h, shown in boxes)


def test_the_maps_fade(browser, page):  # noqa: F811
    with opened(browser, page) as found:
        opacity = "getComputedStyle(document.querySelector('.picture img')).opacity"
        assert found.page.evaluate(opacity) == "0.8"
        found.page.locator("#opacity").fill("0.3")
        assert found.page.evaluate(opacity) == "0.3"
        assert LABEL in found.page.inner_text("table") and not found.problems
