"""Open a page in headless Chromium, and note what it does. Tests that ask for it skip where there is none."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_PATIENCE = 120  # seconds that a page may take where other tests have the cores


class Opened(NamedTuple):
    """A page of Playwright; what went wrong on it, and what it asked a network for."""

    page: Any
    problems: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def opened(browser: Any, place: Path | str, *, width: int = 1400, scheme: str = "light") -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(1000 * _PATIENCE)
    page = context.new_page()
    found = Opened(page, [], [])
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and found.problems.append(message.text),
    )
    page.on("pageerror", lambda error: found.problems.append(str(error)))
    page.on("dialog", lambda dialog: (found.problems.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:")) or found.requests.append(request.url),
    )
    page.goto(place if isinstance(place, str) else place.as_uri())
    yield found
    context.close()


def barriers(page: Any) -> list[str]:
    """What axe-core finds on a page that keeps somebody from reading it, of serious or critical impact."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


# Counts the pixels that each chart has drawn, on canvases inside shadow trees.
INK = """
() => {
  const canvases = (node) => [
    ...node.querySelectorAll("canvas"),
    ...[...node.querySelectorAll("*")].flatMap((each) => (each.shadowRoot ? canvases(each.shadowRoot) : [])),
  ];
  return Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((chart) => [
    chart.id,
    canvases(chart).reduce((most, canvas) => {
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let ink = 0;
      for (let at = 3; at < data.length; at += 4) ink += data[at] > 0;
      return Math.max(most, ink);
    }, 0),
  ]));
}
"""
