"""What comes from browsers for other sites is refused, and no URL leads into this network."""

import contextlib
import ipaddress
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inti_jax.serving import urls
from inti_jax.serving.limits import MEBIBYTE, Access
from tests.serving.running import serving


@pytest.fixture(scope="module")
def service(model):
    """A service that may fetch from 127.0.0.2, and from no other address of this machine."""
    networks = (ipaddress.ip_network("127.0.0.2/32"),)
    with serving(
        model, Access(frozenset({"videos.example"}), True, networks), upload_bytes=MEBIBYTE
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200),
        ({"Host": "videos.example", "Origin": "https://videos.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        # A name that was made to lead to this machine.
        ({"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
    ],
)
def test_a_page_of_another_site_cannot_ask(service, video, headers, status):
    answer = service.client.post("/v1/predict", files={"video": video}, headers=headers)
    assert answer.status_code == status, answer.text
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    if status == 421:
        assert service.error("GET", "/health", headers=headers)[0] == 421


def test_no_site_may_ask_before_it_posts(service):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = service.client.options("/v1/predict", headers=asked)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


@contextlib.contextmanager
def site(video, address="127.0.0.2"):
    """A site at an address of this machine; gives its URL and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            self.send_response(404 if self.path == "/absent" else 200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1 if self.path != "/large" else 200):
                    self.wfile.write(video)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_url_is_labelled_as_the_file(service, video):
    with site(video) as (url, _):
        found = service.client.post("/v1/predict", json={"url": f"{url}/x.mp4", "topk": 2})
        assert found.json() == service.post(video, topk=2).json()
        again = service.client.post("/v1/predict", json={"url": f"{url}/to/{url}/x.mp4"})
        assert again.status_code == 200


def test_no_url_leads_into_this_network(service, video):
    with site(video, "127.0.0.1") as (inside, asked), site(video) as (url, _):
        port = inside.rpartition(":")[2]
        for target in (
            inside,
            f"http://localhost:{port}/",
            f"http://[::ffff:127.0.0.1]:{port}/",
            f"http://2130706433:{port}/",
            f"http://0.0.0.0:{port}/",
            f"{url}/to/{inside}/x.mp4",
            f"{url}/to/http://localhost:{port}/",
        ):
            status, reason = service.error("POST", "/v1/predict", json={"url": target})
            assert status == 422 and reason.startswith("the URL cannot be fetched: it"), target
        assert not asked


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/large", 413, "the file at the URL is too large: give one of at most 1 MiB"),
        ("/absent", 422, "its server answers 404"),
        ("/to/file:///etc/passwd", 422, "the URL cannot be fetched"),
        ("/to/" * 9, 422, "the URL cannot be fetched"),
    ],
)
def test_a_url_that_gives_no_video_is_refused(service, video, path, status, message):
    with site(video) as (url, _):
        found = service.error("POST", "/v1/predict", json={"url": url + path})
    assert found[0] == status and message in found[1]


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/x", "/etc/passwd", "http://", "http://a b/", "gs://bucket/x", ""],
)
def test_what_is_no_url_of_the_web_is_refused(service, url):
    status, reason = service.error("POST", "/v1/predict", json={"url": url})
    assert status == 400 and reason == "`url` should read https://HOST/PATH or http://HOST/PATH"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),
        *[
            (address, False)
            for address in (
                "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
                "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1",
                "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1",
                "2002:7f00:1::", "2002:a00:1::1",
            )
        ],
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert urls.is_public(ipaddress.ip_address(address)) == public
