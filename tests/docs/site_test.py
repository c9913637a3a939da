"""Build the documentation site and open it in a browser: links lead somewhere, and no other host is asked."""

import functools
import html.parser
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urldefrag

import pytest

from tests.browser import browser, opened  # noqa: F401 - a fixture
from tests.docs.pages import ROOT, reference


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    tree = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", tree / "docs")
    shutil.copy(ROOT / "zensical.toml", tree)
    for name in ("inti_jax", "configs"):
        (tree / name).symlink_to(ROOT / name)
    reference().write(tree / "docs" / "reference")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0 and "No issues found" in built.stderr, built.stdout + built.stderr
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
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
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


@pytest.mark.parametrize("place", ["", "tutorial/", "layer/", "reference/config/", "reference/api/"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_pages_open_without_another_host(browser, address, place, width, scheme):  # noqa: F811
    with opened(browser, f"{address}/{place}", width=width, scheme=scheme) as found:
        assert not found.problems
        assert all(request.startswith(address) for request in found.requests), found.requests
        assert found.page.evaluate("document.documentElement.lang") == "en"
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        shown = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        assert found.page.evaluate(shown)
