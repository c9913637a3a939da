"""Find the packets of a video file that hold the wanted frames, and the packets that those depend on.

A packet's place is its position in the file, which is in decoding order. A frame's index is its position in
presentation order, which is the order of the packets' times (`pts`).
"""

import bisect
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import av

# Containers that store presentation times, which identify a frame wherever decoding starts.
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Seeking takes as long as reading this many packets.
_NEAR = 5
# H.264's type of a unit (NAL) that is a slice of an IDR picture. No packet after it depends on one before it.
_IDR = 5


@dataclasses.dataclass(frozen=True)
class Needed:
    """The packets to decode, in `runs` that each start at a keyframe, and the wanted `indices` by time."""

    runs: list[list[av.Packet]]
    indices: dict[int, int]


@dataclasses.dataclass(frozen=True)
class _Known:
    """Packets by place and times by index, for all frames or for those around the wanted ones."""

    packets: dict[int, av.Packet]
    times: dict[int, int]


class _UnreliableError(Exception):
    """Error for a file that breaks an assumption by which frames are matched to packets."""


def find_needed(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: list[int], total: int
) -> Needed | None:
    """Find the packets to decode for the frames at the sorted indices `wanted`, of `total` in the stream.

    Returns None if only decoding from the start can tell which frames those are.
    """
    if container.format.name not in _TIMED or wanted[-1] >= total:
        return None
    try:
        if len(stream.index_entries) == total:
            try:
                return _choose(_read_around(container, stream, wanted), wanted, stream)
            except _UnreliableError:
                container.seek(stream.index_entries[0].timestamp, stream=stream)
        return _choose(_read_all(container, stream, total), wanted, stream)
    except _UnreliableError:
        return None


def _read_all(container: av.container.InputContainer, stream: av.VideoStream, total: int) -> _Known:
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted({_time(packet) for packet in packets if not packet.is_discard})
    # The order of the times gives each frame its index only if each packet is one frame.
    if len(packets) != total or len(times) != total:
        raise _UnreliableError
    if not packets[0].is_keyframe or _time(packets[0]) != times[0]:
        raise _UnreliableError
    return _Known(dict(enumerate(packets)), dict(enumerate(times)))


def _read_around(container: av.container.InputContainer, stream: av.VideoStream, wanted: list[int]) -> _Known:
    """Read the packets from the keyframe before each wanted frame up to that frame, by the file's index.

    The file's index has the packets' positions and decoding times (`dts`), but not their presentation times.
    Three facts give the frames' indices. Packets before a keyframe are presented before it, so the keyframe's
    place is its index. Packets after it are presented after it, which is checked. No packet is presented
    before it is decoded, so packets whose `dts` is past a frame's time need not be read to know its index.
    """
    known = _Known({}, {})
    latest = -math.inf
    with contextlib.closing(_Reader(container, stream)) as reader:
        reader.start()
        for start, indices in itertools.groupby(wanted, reader.keyframe_before):
            last = max(indices) - start
            reader.go_to(start)
            times: list[int] = []
            while len(times) <= last or not reader.is_past(times[last]):
                packet = reader.read()
                known.packets[start + len(times)] = packet
                bisect.insort(times, _time(packet))
            key = known.packets[start]
            in_order = latest < times[0] == _time(key) and len(set(times)) == len(times)
            if not in_order or not _is_border(key, stream.codec_context):
                raise _UnreliableError
            latest = times[-1]
            known.times.update(enumerate(times[: last + 1], start=start))
    return known


class _Reader:
    """Reader of a file that indexes all its packets: in order, or from a keyframe on."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self._container, self._stream = container, stream
        self._entries = list(stream.index_entries)
        self._keys = [place for place, entry in enumerate(self._entries) if entry.is_keyframe]
        decoded_at = [entry.timestamp for entry in self._entries]
        if self._keys[:1] != [0] or decoded_at != sorted(decoded_at):
            raise _UnreliableError
        self._place = 0
        self._demuxing: Any = container.demux(stream)
        self._packets: Iterator[av.Packet] = self._demuxing

    def start(self) -> None:
        """Measure the delay between decoding and presentation on the first packet; call this first."""
        first = self.read()
        self._delay = _time(first) - self._entries[0].timestamp
        self._packets, self._place = itertools.chain([first], self._demuxing), 0

    def close(self) -> None:
        """Close the demuxing generator: PyAV leaks memory if one is left unfinished."""
        self._demuxing.close()

    def keyframe_before(self, place: int) -> int:
        """Return the place of the last keyframe at or before `place`."""
        return self._keys[bisect.bisect_right(self._keys, place) - 1]

    def go_to(self, keyframe: int) -> None:
        """Move forward to the keyframe at that place, by seeking or, if it is near, by reading."""
        if keyframe - self._place > _NEAR:
            self.close()
            # Seeking goes by presentation time, as it would be if all packets had the first one's delay.
            self._container.seek(self._entries[keyframe].timestamp + self._delay, stream=self._stream)
            self._packets = self._demuxing = self._container.demux(self._stream)
            self._place = keyframe
        while self._place < keyframe:
            self.read()

    def read(self) -> av.Packet:
        """Read the next packet, and raise _UnreliableError unless it matches the index."""
        packet, entry = next(self._packets), self._entries[self._place]
        if (packet.pos, packet.dts, packet.size) != (entry.pos, entry.timestamp, entry.size):
            raise _UnreliableError
        if _time(packet) < entry.timestamp or packet.is_discard:
            raise _UnreliableError
        self._place += 1
        return packet

    def is_past(self, time: int) -> bool:
        """Return True if no later packet is presented before `time`, which is after the last keyframe's."""
        if self._place == len(self._entries):
            return True
        entry = self._entries[self._place]
        return entry.is_keyframe or entry.timestamp > time


def _time(packet: av.Packet) -> int:
    if packet.pts is None:
        raise _UnreliableError
    return packet.pts


def _choose(known: _Known, wanted: list[int], stream: av.VideoStream) -> Needed:
    """Choose the runs to decode: each from a keyframe to the last wanted frame that depends on it."""
    places = {_time(packet): place for place, packet in known.packets.items()}
    keys = sorted(_time(packet) for packet in known.packets.values() if packet.is_keyframe)
    runs: list[tuple[int, set[int]]] = []
    for index in wanted:
        time = known.times[index]
        key, place = places[keys[bisect.bisect_right(keys, time) - 1]], places[time]
        if place < key:
            raise _UnreliableError
        if not runs or key > max(runs[-1][1]):
            runs.append((key, set()))
        runs[-1][1].add(place)
    prefix = _nal_prefix(stream.codec_context)
    return Needed(
        [
            [
                known.packets[place]
                for place in range(start, max(held) + 1)
                if place in held or not _is_disposable(known.packets[place], prefix)
            ]
            for start, held in runs
        ],
        {known.times[index]: index for index in wanted},
    )


# Headers in H.264's packets say whether other packets depend on them.


def _nal_prefix(decoder: av.VideoCodecContext) -> int:
    """Return the bytes of the length field before each NAL unit (H.264 in MP4, Matroska); 0 for others."""
    configuration = decoder.extradata or b""
    if decoder.name != "h264" or len(configuration) < 7 or configuration[0] != 1:
        return 0
    return (configuration[4] & 3) + 1


def _slices(packet: av.Packet, prefix: int) -> list[int]:
    """Read the NAL headers of the picture's slices; empty if the units' lengths do not fit the packet."""
    data = memoryview(packet)
    at, headers = 0, []
    while at + prefix < len(data):
        headers.append(data[at + prefix])
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
    return [header for header in headers if 1 <= header & 31 <= _IDR] if at == len(data) else []


def _is_disposable(packet: av.Packet, prefix: int) -> bool:
    """Return True for an H.264 packet whose picture is no reference for any other (`nal_ref_idc` is 0)."""
    headers = _slices(packet, prefix) if prefix else []
    return bool(headers) and not any(header & 0x60 for header in headers)


def _is_border(keyframe: av.Packet, decoder: av.VideoCodecContext) -> bool:
    """Return True if all packets before the keyframe are presented before it; in H.264, only for IDR."""
    if decoder.name != "h264":
        return True
    prefix = _nal_prefix(decoder)
    return prefix > 0 and any(header & 31 == _IDR for header in _slices(keyframe, prefix))
