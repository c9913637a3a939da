"""Requests that are large, slow, broken or killed: each is refused or ends, and leaves nothing behind."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inti_jax.serving import decoding
from inti_jax.serving.limits import MEBIBYTE, Limits
from tests.serving.running import serving, until

HEAD = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1900000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
)
PART = b'--x\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n'


@pytest.fixture(scope="module")
def service(model):
    with serving(model, upload_bytes=2 * MEBIBYTE, waiting=4) as running:
        yield running


@contextlib.contextmanager
def connected(service):
    """A connection of our own, on which we send what no library would."""
    host, port = service.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        yield client


@contextlib.contextmanager
def uploading(service, video):
    """A connection on which an upload has begun and does not go on."""
    with connected(service) as client:
        taken = service.taken()
        client.sendall(HEAD + PART + video)
        until(lambda: service.taken() > taken)
        yield client


def nameless():
    """The number of open files of this process that have no name."""
    count = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            count += str(link.readlink()).endswith(" (deleted)")
    return count


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_is_refused_as_soon_as_it_is_too_large(service, announced):

    def body():
        yield PART
        for _ in range(300):
            yield bytes(MEBIBYTE)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    if announced:
        headers["content-length"] = str(len(PART) + 300 * MEBIBYTE)
    started = time.monotonic()
    status, reason = service.error("POST", "/v1/predict", content=body(), headers=headers)
    assert status == 413 and reason.endswith("send a video of at most 2 MiB")
    assert time.monotonic() - started < 15
    service.wait_until_free()


def test_a_client_that_waits_for_the_servers_word_sends_nothing(service):
    with connected(service) as client:
        client.sendall(HEAD.replace(b"1900000", b"2147483648\r\nExpect: 100-continue"))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_frees_its_place(service, video):
    before = nameless()
    with uploading(service, video * 100):  # more than is kept in memory
        until(lambda: nameless() == before + 1)
    service.wait_until_free()
    assert nameless() == before
    assert service.figures()['inti_jax_requests_total{status="499"}'] >= 1


def test_a_client_that_is_too_slow_is_told(model, video):
    with serving(model, decoders=1, request_seconds=1.0) as running:
        with uploading(running, video) as client:
            answer = b""
            while b"}" not in answer:
                answer += client.recv(4000)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"the video did not arrive within 1 s" in answer
        running.wait_until_free()


def test_more_than_may_wait_are_told_to_come_again(service, video):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(uploading(service, video))
        answer = service.post(video)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"].startswith("4 requests are being answered")
    service.wait_until_free()
    assert service.post(video).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        HEAD.replace(b"1900000", b"-1"),
        HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        HEAD.replace(b"1900000", b"20") + b"x" * 20,
        HEAD.replace(b"1900000", b"%d" % (len(PART) + 20)) + PART + b"no last boundary....",
        HEAD.replace(b"1900000", b"9000") + b"--x\r\n" + b"X" * 9000,
    ],
)
def test_what_is_no_request_is_refused(service, sent):
    with connected(service) as client:
        client.sendall(sent)
        assert client.recv(100).startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), sent[:40]
    service.wait_until_free()


def test_a_connection_without_a_request_is_closed(model):
    with serving(model, head_seconds=0.2, decoders=1, batch=1) as running:
        for sent in (b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with connected(running) as client:
                client.sendall(sent)
                while client.recv(4000):
                    pass


def decoders():
    """The processes that decode."""
    return {child.pid for child in multiprocessing.active_children() if child.name == "decoder"}


def test_a_decoder_that_hangs_or_dies_is_replaced(model, video):
    others = decoders()
    with serving(model, decoders=1, decode_seconds=2.0) as running:
        (hung,) = decoders() - others
        os.kill(hung, signal.SIGSTOP)
        status, reason = running.error("POST", "/v1/predict", files={"video": video})
        assert status == 504 and reason.startswith("the video was not decoded within 2 s")
        assert running.post(video).status_code == 200
        (dying,) = decoders() - others
        os.kill(dying, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (dying, signal.SIGSEGV)).start()
        threading.Timer(0.2, os.kill, (dying, signal.SIGCONT)).start()
        status, reason = running.error("POST", "/v1/predict", files={"video": video})
        assert status == 422 and reason.startswith("the decoder crashed on the video: send a video file")
        assert running.post(video).status_code == 200
        assert running.figures()["inti_jax_decoder_restarts_total"] == 2
    for pid in (hung, dying):
        assert not Path(f"/proc/{pid}").exists()
    assert decoders() == others


def test_a_decoder_ends_with_its_server(model):
    ours, theirs = socket.socketpair()
    recipe = decoding.Recipe(model.data, model.settings, Limits())
    process = multiprocessing.get_context("forkserver").Process(target=decoding.run, args=(theirs, recipe))
    with ours, theirs:
        process.start()
        assert ours.recv(1)
    process.join(30)
    assert process.exitcode == 0


def test_a_client_that_goes_ends_the_decoding_of_its_video(model, video):
    others = decoders()
    with serving(model, decoders=1, decode_seconds=30.0) as running:
        (hung,) = decoders() - others
        os.kill(hung, signal.SIGSTOP)
        with connected(running) as client:
            end = b"\r\n--x--\r\n"
            length = len(PART + video + end)
            client.sendall(HEAD.replace(b"1900000", b"%d" % length) + PART + video + end)
            until(running.taken)
            time.sleep(0.1)
        running.wait_until_free()
        assert running.post(video).status_code == 200
        assert not Path(f"/proc/{hung}").exists()


def test_many_clients_at_once_are_answered_or_told_to_come_again(service, video):
    def ask(number):
        if number % 4 == 3:
            with connected(service) as client:
                client.sendall(HEAD + PART + video)
            return 0
        return service.post(video if number % 4 else b"broken").status_code

    with ThreadPoolExecutor(64) as threads:
        found = list(threads.map(ask, range(192)))
    assert {200, 503} <= set(found) <= {0, 200, 422, 503}
    service.wait_until_free()
    assert service.post(video).status_code == 200
