"""The service on loopback: its answers are those of `predict`, and no request takes more than it may."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inti_jax.predict import predict_files
from inti_jax.serving import description
from inti_jax.serving.limits import MEBIBYTE
from tests.browser import browser, opened  # noqa: F401 - a fixture
from tests.data import clips
from tests.serving.running import serving

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def service(model):
    """A service with low limits."""
    limits = {"upload_bytes": MEBIBYTE, "frames": 100, "decode_bytes": 32 * MEBIBYTE, "waiting": 16}
    with serving(model, batch_seconds=0.05, **limits) as running:
        yield running


def test_predictions_are_those_of_predict(service, trained_run, tmp_path):
    shapes = [(40, 48, 64), (12, 80, 40), (5, 32, 32)]
    paths = [tmp_path / f"{number}.mkv" for number in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        path.write_bytes(clips.encode(clips.moving_square(*shape), container="matroska"))
    for path, shape, told in zip(paths, shapes, predict_files(trained_run, paths, 3), strict=True):
        found = service.post(path.read_bytes(), topk=3).json()
        assert [each["label"] for each in found["predictions"]] == [
            each["label"] for each in told["predictions"]
        ]
        np.testing.assert_allclose(
            [each["probability"] for each in found["predictions"]],
            [each["probability"] for each in told["predictions"]],
            atol=1e-5,
        )
        frames, height, width = shape
        assert found["video"] == {"frames": frames, "fps": 25.0, "height": height, "width": width}


def test_requests_that_come_together_are_one_batch(service, video):
    before = service.figures()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: service.post(video), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) <= 3  # batches of other sizes round in other ways
    after = service.figures()
    count, videos = (
        after[name] - before[name] for name in ("inti_jax_batch_size_count", "inti_jax_batch_size_sum")
    )
    assert videos == 16 and count <= 10


def test_the_model_and_the_limits_are_described(service, model):
    told = service.client.get("/v1/model").json()
    assert told["labels"] == list(model.record.dataset.labels) and told["activation"] == "softmax"
    assert told["limits"]["megabytes"] == 1 and not told["limits"]["urls"]
    paths = service.client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            asked = service.client.request(method, path)
            assert asked.status_code == (415 if method == "post" else 200), path
    assert set(paths["/v1/predict"]["post"]["responses"]) == {"200", *map(str, description.REFUSALS)}


FOLLOWED = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {path}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_file_that_names_others_is_not_followed(service, video, tmp_path, kind):
    path = tmp_path / "secret.mp4"
    path.write_bytes(video)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        names = {"url": f"file://{path}", "path": path, "port": port}
        for form in (FOLLOWED[kind].format(**names), FOLLOWED[kind].format(**names | {"url": path})):
            answer = service.post(form.encode())
            assert answer.status_code == 422, answer.text
            assert str(tmp_path) not in answer.text and "/proc" not in answer.text
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"no video", "the video cannot be labelled: it does not decode: Invalid data found"),
        (b"", "the file `video` is empty"),
        (clips.sound_only(), "it has no video stream"),
        (clips.no_frames(), "the video cannot be labelled: it"),
        (clips.encode(clips.moving_square(12))[:-2000], "the video cannot be labelled: it"),
        (clips.encode(clips.moving_square(101, 16, 16)), "it has 101 frames, and at most 100 are decoded"),
    ],
)
def test_a_file_that_is_no_video_is_refused(service, file, message):
    answer = service.post(file)
    assert answer.status_code in (400, 422) and message in answer.json()["error"]
    assert "send" in answer.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"content": b"x"}, 415, "the body is of no type: send multipart/form-data with the video"),
        ({"files": {"film": b"x"}}, 400, "an unknown field `film`: send multipart/form-data with the video"),
        ({"data": {"topk": "5"}, "files": {"topk": b"x"}}, 400, "the form has no file `video`"),
        ({"files": [("video", b"x"), ("video", b"y")]}, 400, "Too many files"),
        ({"files": {"video": b"x"}, "data": {"topk": "0"}}, 400, "`topk` is '0': it should be a number"),
        ({"files": {"video": b"x"}, "data": {"topk": "5" * 20_000}}, 400, "exceeded maximum size"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"json": {"path": "/etc/passwd"}}, 400, "the body should be an object with a text `url`"),
        ({"json": {"url": "x" * 20_000}}, 413, "the request is too large"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the body is not JSON"),
        ({"json": {"url": "http://127.0.0.1/x.mp4"}}, 403, "start the server with --allow_urls"),
    ],
)
def test_a_body_that_is_none_is_refused(service, arguments, status, message):
    found = service.error("POST", "/v1/predict", **arguments)
    assert found[0] == status and message in found[1]


def test_other_paths_and_methods_are_refused(service):
    for method, path, status in (("GET", "/../../etc/passwd", 404), ("GET", "/v1/predict", 405)):
        found = service.error(method, path)
        assert found[0] == status and "POST /v1/predict" in found[1]


def test_enormous_frames_are_refused_before_they_are_decoded(service):
    bomb = clips.encode(np.zeros((8, 1536, 1536, 3), np.uint8), options={"preset": "ultrafast"}, b_frames=0)
    assert len(bomb) < 50_000
    started = time.monotonic()
    answer = service.post(bomb)
    assert answer.status_code == 422
    assert "of 1536 x 1536 pixels take" in answer.json()["error"] and time.monotonic() - started < 5


def test_a_decoder_takes_no_more_memory_than_it_may(model, video):
    parts = [
        clips.encode(video, container="mpegts", options={"preset": "ultrafast"}, b_frames=0)
        # The head announces the size of the first part.
        for video in (clips.moving_square(8), np.zeros((4, 4096, 4096, 3), np.uint8))
    ]
    for megabytes, status in ((8, 422), (512, 200)):
        with serving(model, decoders=1, decode_bytes=megabytes * MEBIBYTE, upload_bytes=MEBIBYTE) as running:
            assert running.post(b"".join(parts)).status_code == status
            assert running.post(video).status_code == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_labels_a_video(browser, service, video, tmp_path, scheme):  # noqa: F811
    (tmp_path / "clip.mp4").write_bytes(video)
    (tmp_path / "text.mp4").write_text("no video")
    with opened(browser, service.server.url, width=390, scheme=scheme) as found:
        page = found.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_label("Video file").set_input_files(tmp_path / "clip.mp4")
        page.get_by_label("Number of labels").fill("3")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer tbody tr")
        told = [each["label"] for each in service.post(video, topk=3).json()["predictions"]]
        rows = page.locator("#answer tbody tr")
        assert [row.locator("td").first.inner_text() for row in rows.all()] == told
        assert "40 frames of 64 x 48 pixels" in page.locator("#answer caption").inner_text()
        assert page.locator("#answer").get_attribute("aria-live") == "polite"
        assert all(request.startswith(service.server.url) for request in found.requests)
        assert not found.problems
        page.get_by_label("Video file").set_input_files(tmp_path / "text.mp4")
        page.get_by_role("button", name="Label", exact=True).click()
        page.wait_for_selector("#answer .error")
        assert "it does not decode" in page.locator("#answer .error").inner_text()


def test_the_page_works_without_javascript(browser, service, video, tmp_path):  # noqa: F811
    (tmp_path / "clip.mp4").write_bytes(video)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(service.server.url)
    page.get_by_label("Video file").set_input_files(tmp_path / "clip.mp4")
    page.get_by_role("button", name="Label", exact=True).click()
    page.wait_for_url("**/v1/predict")
    assert '"predictions"' in page.inner_text("body")
    context.close()
