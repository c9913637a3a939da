"""A camera on this machine: an RTSP server (RFC 7826's predecessor, RFC 2326) that plays one H.264 video."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np

from tests.data import clips

_CLOCK = 90_000  # ticks a second of H.264 over RTP


@contextlib.contextmanager
def serving(video: np.ndarray, fps: int = 25, then_stalls: bool = False) -> Iterator[str]:
    """Serve the frames once; give the URL. After the last frame the camera hangs up or, asked to, stalls."""
    pictures = access_units(video, fps)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    _answer(connection)
                    _play(connection, pictures, fps)
                    if then_stalls:
                        done.wait()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"rtsp://user:secret@127.0.0.1:{server.getsockname()[1]}/camera"
        finally:
            done.set()
    thread.join(10)


def access_units(video: np.ndarray, fps: int) -> list[list[bytes]]:
    """The NAL units of each frame."""
    encoded = clips.encode(video, container="h264", b_frames=0, fps=fps)
    units = [found for unit in encoded.split(b"\0\0\1") if (found := unit.rstrip(b"\0"))]
    pictures: list[list[bytes]] = [[]]
    for unit in units:
        pictures[-1].append(unit)
        if unit[0] & 31 in (1, 5):  # a slice; each frame has one
            pictures.append([])
    return pictures[:-1]


def _answer(connection: socket.socket) -> None:
    """Answer requests up to PLAY."""
    lines = connection.makefile("rb")
    while True:
        request = lines.readline().decode()
        headers = dict(line.decode().strip().split(": ", 1) for line in iter(lines.readline, b"\r\n"))
        method, body, extra = request.split()[0], "", ""
        if method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 H264/{_CLOCK}\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
            )
            extra = "Content-Type: application/sdp\r\n"
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            extra = "Session: 1\r\n"
        reply = (
            f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}"
        )
        connection.sendall(reply.encode())
        if method == "PLAY":
            return


def _play(connection: socket.socket, pictures: list[list[bytes]], fps: int) -> None:
    """Send each NAL unit as an RTP packet, interleaved with the connection."""
    sequence = 0
    for number, units in enumerate(pictures):
        for unit in units:
            marker = 0x80 if unit is units[-1] else 0
            packet = struct.pack(">BBHII", 0x80, marker | 96, sequence, number * _CLOCK // fps, 7) + unit
            connection.sendall(struct.pack(">BBH", ord("$"), 0, len(packet)) + packet)
            sequence += 1
