"""Build the documentation site and open it in a browser: links lead somewhere, search finds, all can read.

An older version is there before, and stays.
"""

import functools
import html.parser
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import inti_jax
from tests.browser import barriers, browser, opened  # noqa: F401 - a fixture
from tests.docs.pages import ROOT, script

VERSION = ".".join(inti_jax.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What ./launch/docs.sh builds, in a copy of what it reads."""
    tree = tmp_path_factory.mktemp("site")
    for name in ("docs", "launch"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("zensical.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree)
    for name in ("inti_jax", "configs"):
        (tree / name).symlink_to(ROOT / name)
    older = tree / "site" / "0.0"
    older.mkdir(parents=True)
    (older / "index.html").write_text("<!doctype html><title>the older version</title>")
    stale = tree / "site" / VERSION / "stale.html"
    stale.parent.mkdir()
    stale.touch()
    (tree / "launch" / "common.sh").write_text("ensure_venv() { :; }\n")  # this environment has it all
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    built = subprocess.run([tree / "launch" / "docs.sh"], capture_output=True, text=True, env=variables)
    assert built.returncode == 0 and "No issues found" in built.stderr, built.stdout + built.stderr
    assert not stale.exists()
    assert (tree / "docs" / "tutorial.ipynb").read_bytes() == (ROOT / "docs" / "tutorial.ipynb").read_bytes()
    return tree / "site"


class Page(html.parser.HTMLParser):
    """The links and the anchors of a page, its headings, and pictures without words."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.headings, self.silent = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag in ("a", "img", "link", "script") and (to := attributes.get("href") or attributes.get("src")):
            self.links.append(to)
        if tag == "img" and not attributes.get("alt"):
            self.silent.append(attributes.get("src"))
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))


def test_links_lead_somewhere_and_pictures_have_words(site):
    found = (site / VERSION).rglob("*.html")
    pages = {path: Page(path.read_text()) for path in found if path.name != "404.html"}
    assert len(pages) > 20
    for path, page in pages.items():
        assert page.headings.count(1) == 1 and not page.silent, path
        for link in page.links:
            place, anchor = urldefrag(link)
            if place.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path, link)
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, (path, link)


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "place", ["", "tutorial/", "notebook/", "layer/", "reference/config/", "reference/api/"]
)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_pages_open_without_another_host(browser, address, place, width, scheme):  # noqa: F811
    with opened(browser, f"{address}/{VERSION}/{place}", width=width, scheme=scheme) as found:
        assert not found.problems
        assert all(request.startswith(address) for request in found.requests), found.requests
        assert found.page.evaluate("document.documentElement.lang") == "en"
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        shown = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        assert found.page.evaluate(shown)
        if place not in ("layer/", "reference/config/"):  # like the others, and the second takes long
            assert barriers(found.page) == []


def test_the_search_finds_a_page(browser, address):  # noqa: F811
    with opened(browser, f"{address}/{VERSION}/") as found:
        page = found.page
        page.get_by_role("button", name="Search").first.click()
        page.get_by_role("combobox").fill("rank correlation")
        page.locator(f'a[href^="{address}/{VERSION}/explain/"]').first.click()
        page.wait_for_url("**/explain/**")
        assert page.locator("h1").inner_text().startswith("Where an answer came from")
        assert not found.problems and all(request.startswith(address) for request in found.requests)


def selected(page):
    """The versions that a page lets one select, with what it says of the one that it is of."""
    page.locator(".md-version__current").wait_for()
    return page.locator(".md-version").inner_text().split(), page.get_by_text(
        "of an older version"
    ).is_visible()


def test_a_reader_selects_a_version_and_older_ones_lead_to_the_latest(browser, site, address):  # noqa: F811
    with opened(browser, address) as found:
        page = found.page
        page.wait_for_url("**/latest/")
        assert selected(page) == ([VERSION, VERSION, "0.0"], False) and not found.problems
        page.locator(".md-version").hover()
        page.get_by_role("link", name="0.0", exact=True).click()
        page.wait_for_url("**/0.0/")
        assert page.title() == "the older version"

    # A later release adds its own to the site.
    pages = site.parent / "pages"
    shutil.copytree(site / VERSION, pages)
    script("versions").add(pages, site, "0.10")
    with opened(browser, f"{address}/{VERSION}/layer/") as found:
        page = found.page
        assert selected(page) == ([VERSION, "0.10", VERSION, "0.0"], True)
        page.get_by_role("link", name="Read the latest.").click()
        page.wait_for_url("**/latest/")
        assert selected(page) == (["0.10", "0.10", VERSION, "0.0"], False)
        assert not found.problems


def test_another_argument_of_the_script_is_refused_before_anything_runs():
    for arguments in (["publish"], ["serve", "build"]):
        refused = subprocess.run([ROOT / "launch" / "docs.sh", *arguments], capture_output=True, text=True)
        assert refused.returncode == 2 and refused.stdout == ""
        assert refused.stderr == f"error: give nothing or serve, not '{' '.join(arguments)}'\n"
