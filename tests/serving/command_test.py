"""The command: it starts, drains and ends as a process, and a mistake is one line."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.commands import call
from tests.processes import environment
from tests.serving.running import until


@contextlib.contextmanager
def started(*arguments):
    """The command as a process, and its URL once it is ready."""
    command = [sys.executable, "-m", "inti_jax.serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(1), stderr=subprocess.PIPE, text=True)
    try:
        url = None
        for line in process.stderr:
            found = re.search(r"serving on (http://127.0.0.1:\d+)", line)
            url = found[1] if found else url
            if " ready after " in line:
                break
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_sigterm_answers_what_has_come_and_ends(trained_run, video):
    with started("--checkpoint", trained_run, "--decoders", "1", "--batch", "2") as (process, url):
        (decoder,) = decoders_of(process.pid)
        os.kill(decoder, signal.SIGSTOP)  # so that the answer takes until after the signal
        answers = []
        post = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/predict", files={"video": video}, timeout=60))
        )
        post.start()
        until(lambda: "inti_jax_waiting_requests 1.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            until(lambda: not httpx.get(f"{url}/health"))
        os.kill(decoder, signal.SIGCONT)
        post.join(30)
        assert answers[0].status_code == 200 and answers[0].json()["predictions"]
        assert process.wait(30) == 0
        assert process.stderr.read().endswith(" stopped\n")
        wait_until_gone(decoder)


def decoders_of(pid):
    """The processes that decode: they are forked by a child of the server."""
    children = dict(parents())
    return [child for child, parent in children.items() if children.get(parent) == pid]


def parents():
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(path.name), int((path / "stat").read_text().rpartition(")")[2].split()[1])


def wait_until_gone(pid):
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_port_in_use_is_one_line(trained_run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = call("serve", "--checkpoint", trained_run, "--port", port)
    assert process.returncode == 1
    assert process.stderr == (
        f"error: --host 127.0.0.1 --port {port}: Address already in use; give another port, or 0 for any\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--checkpoint", "{}/absent", "--port", "0"), 2, "{}/absent"),
        (("--checkpoint", "x", "--host", "192.0.2.1"), 1, "--host 192.0.2.1 --port 8000: Cannot assign"),
        (
            ("--checkpoint", "x", "--host", "fe80::1%none"),
            1,
            "--host fe80::1%none is no address of this mach",
        ),
        (("--checkpoint", "x", "--port", "65536"), 2, "--port is 65536: it should be at most 65535"),
        (("--checkpoint", "x", "--batch", "0"), 2, "--batch is 0: it should be above 0"),
        (
            ("--checkpoint", "x", "--decode_seconds", "nan"),
            2,
            "--decode_seconds is nan: it should be above 0",
        ),
        (("--checkpoint", "x", "--batch_wait", "-1"), 2, "--batch_wait is -1.0: it should be from 0 to 1000"),
        (("--checkpoint", "x", "--allow_network", "10.0.0.0/8"), 2, "give --allow_urls too"),
        (("--checkpoint", "x", "--allow_network", "10.0.0.1/8"), 2, "10.0.0.1/8 has host bits set"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, status, message):
    process = call("serve", *(word.format(tmp_path) for word in arguments))
    assert process.returncode == status, process.stderr
    assert message.format(tmp_path) in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
