"""The pages in a browser: what a reader sees and does."""

import dataclasses
from collections import Counter

import pytest

from inti_jax.reports import writing
from tests.browser import INK, barriers, browser, opened  # noqa: F401 - a fixture
from tests.configs import INTI, tiny
from tests.reports import made_up

HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "$$\\frac{1}{2}$$", "walk the dog")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run and that of two, whose classes and ids mean harm."""
    out = tmp_path_factory.mktemp("pages")
    runs = []
    for seed, name in enumerate(("one", "two")):
        saved, views = made_up.predicted(videos=80, classes=4)
        views = views if seed else views[:, :, ::-1].copy()
        ids = tuple(f"</script><b>{name}</b>" for name in saved.ids)
        saved = dataclasses.replace(saved, classes=HOSTILE, ids=ids, probabilities=views.mean(axis=1))
        settings = tiny("nowhere", **INTI, eval__clips=2, train__seed=seed)
        runs.append(made_up.run(out / name, settings=settings, found=(saved, views)))
    writing.write(runs[:1], runs[0], "<i>one</i>", timed=False)
    writing.write(runs, out, "both", timed=False)
    return {"run": runs[0] / "report.html", "comparison": out / "report.html"}


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_draws_every_chart_and_asks_no_network(browser, pages, name, width, scheme):  # noqa: F811
    with opened(browser, pages[name], width=width, scheme=scheme) as found:
        found.page.wait_for_selector("html[data-charts=drawn]")
        found.page.wait_for_timeout(500)
        ink = found.page.evaluate(INK)
        assert len(ink) == (14 if name == "run" else 7)
        assert all(pixels > 1000 for pixels in ink.values()), ink
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not found.problems and not found.requests
        if name == "run":
            assert barriers(found.page) == []


def test_searches_find_classes_and_videos(browser, pages):  # noqa: F811
    with opened(browser, pages["run"]) as found:
        page = found.page
        page.fill("[data-filters=classes]", "WALK")
        assert page.locator("#classes tbody tr:visible").all_inner_texts()[0].startswith("walk the dog")
        assert page.locator("#classes tbody tr:visible").count() == 1
        page.fill("#find-videos", "video 7")
        page.wait_for_selector("#videos-found .card")
        ids = page.locator("#videos-found .card .id").all_inner_texts()
        assert sorted(ids) == sorted(f"</script><b>video {number}</b>" for number in (7, *range(70, 80)))
        assert not page.locator("#video-groups").is_visible()
        page.fill("#find-videos", "walk the")
        page.wait_for_timeout(300)
        labels = page.locator("#videos-found .card > p:nth-of-type(2)").all_inner_texts()
        assert labels and all("walk the dog" in label for label in labels)
        page.fill("#find-videos", "")
        page.wait_for_selector("#video-groups .card")
        assert not found.problems


def test_curves_zoom_together(browser, pages):  # noqa: F811
    with opened(browser, pages["run"]) as found:
        page = found.page
        page.wait_for_selector("html[data-charts=drawn]")
        box = page.locator("#chart-loss").bounding_box()
        at = [(box["x"] + share * box["width"], box["y"] + 0.6 * box["height"]) for share in (0.4, 0.7)]
        page.mouse.move(*at[0])
        page.mouse.down()
        page.mouse.move(at[1][0], at[1][1] + 30, steps=5)
        page.mouse.up()
        page.wait_for_timeout(300)
        ranges = page.evaluate(
            "Bokeh.documents[0].roots().map(({x_range}) => `${x_range.start} ${x_range.end}`)"
        )
        ((zoomed, count),) = Counter(ranges).most_common(1)
        assert count == 9 and all(0 < float(end) < 4 for end in zoomed.split())
        assert not found.problems


def test_two_runs_are_compared_either_way(browser, pages):  # noqa: F811
    with opened(browser, pages["comparison"]) as found:
        page = found.page
        there = page.locator("#pair .big").inner_text()
        page.select_option("#pair-first", "two")
        assert "two different runs" in page.locator("#pair").inner_text()
        page.select_option("#pair-second", "one")
        back = page.locator("#pair .big").inner_text()
        assert there.startswith("+") and back.startswith("\N{MINUS SIGN}")
        assert there[1:].split()[0] == back[1:].split()[0]
        assert "become right" in page.locator("#pair").inner_text() and not found.problems
