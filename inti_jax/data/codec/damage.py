"""Count a video's doubtful frames: what FFmpeg flags as damaged, and what is missing."""

import bisect
import itertools
import math
import statistics
from array import array
from collections.abc import Iterator

import av

# Containers that have little but packets. Others (WMV, transport streams) fill a gap in time with bytes.
_DENSE = ("matroska,webm", "flv")
# A hole in these: so many times the bytes that usually are between two packets, at least so many bytes, and
# such a share of what the frames would have taken that are missing there.
_HOLE_TIMES, _HOLE_BYTES, _HOLE_SHARE = 10, 256, 0.5
# Packets before and after a hole among which the frames next to it are. Packets are in the order of
# decoding, and no usual encoder moves a frame further than this from its place.
_REORDERED = 8
# Times that are so many usual intervals apart have lost a frame. Some containers round to milliseconds.
_INTERVAL = 1.6
# Codecs of which each packet is a picture to be shown: others have some that only help to decode.
_SHOWN = ("h264", "hevc", "vp9", "av1", "libdav1d")


class DoubtfulFrames:
    """Count the frames of a stream that need not show what was filmed, while it is decoded whole.

    - Frames that FFmpeg flags: parts of them were damaged or missing, and it made something up for those.
      Frames that are predicted from them are not flagged.
    - Packets that the container's reader flags: a part of them is missing in the file.
    - Packets of which the decoder gave no frame, after its first one.
    - Frames of which there is no packet, where the container does not announce how many there are: the times
      leave room for them, and the file has a hole there: a packet that is flagged or, in Matroska, WebM and
      Flash, many more bytes than usual that belong to no packet. A gap in time alone is no damage: many
      videos have a variable rate.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self._container, self._stream = container, stream
        self._flagged = 0
        self._flagged_times: set[int] = set()
        self._times, self._sizes = array("q"), array("q")  # of the stream's packets
        self._shown = array("q")  # times of the frames
        self._interlaced = False
        self._end: int | None = None  # of the packets so far, in bytes
        self._gaps = array("q")  # bytes before each packet, of any stream, that belong to none
        # Places in `_times` before which frames may be missing: the bytes there that belong to no packet.
        self._holes: list[tuple[int, float]] = []

    def add_packet(self, packet: av.Packet) -> None:
        """Note a packet of any of the file's streams, in the file's order."""
        if packet.pos is not None:
            gap = max(0, packet.pos - self._end) if self._end is not None else 0
            self._gaps.append(gap)
            if gap > _HOLE_BYTES and self._container.format.name in _DENSE:
                self._holes.append((len(self._times), gap))
            self._end = max(self._end or 0, packet.pos + packet.size)
        if packet.stream_index != self._stream.index or packet.is_discard:
            return
        self._flagged += packet.is_corrupt
        if packet.pts is not None:
            self._times.append(packet.pts)
            self._sizes.append(packet.size)
            if packet.is_corrupt:
                self._holes += [(len(self._times) - 1, math.inf), (len(self._times), math.inf)]
                self._flagged_times.add(packet.pts)

    def add_frame(self, frame: av.VideoFrame) -> None:
        """Note a frame of the stream."""
        self._flagged += frame.is_corrupt and frame.pts not in self._flagged_times
        self._interlaced |= frame.interlaced_frame
        if frame.pts is not None:
            self._shown.append(frame.pts)

    @property
    def bytes_behind(self) -> int:
        """How many bytes of the file come after the packets so far."""
        return self._container.size - (self._end or self._container.size)

    def count(self, seconds_missing: float) -> tuple[int, int]:
        """Give the number of doubtful frames that are there, and of those that are not.

        `seconds_missing` is how much earlier than announced the file ends.
        """
        return self._flagged, self._not_decoded() + self._not_in_the_file(seconds_missing)

    def _not_decoded(self) -> int:
        # Of interlaced video, two packets can be one frame.
        if self._stream.codec_context.name not in _SHOWN or self._interlaced or not self._shown:
            return 0
        first = min(self._shown)
        return sum(time >= first for time in set(self._times) - set(self._shown) - self._flagged_times)

    def _not_in_the_file(self, seconds_missing: float) -> int:
        times = sorted(set(self._times))
        if self._stream.frames or len(times) < 3:
            return 0
        intervals = [later - time for time, later in itertools.pairwise(times)]
        usual = statistics.median(intervals)
        lost = [round(step / usual) - 1 if step / usual > _INTERVAL else 0 for step in intervals]
        size = statistics.median(self._sizes) * _HOLE_SHARE
        least = max(_HOLE_BYTES, _HOLE_TIMES * statistics.median(self._gaps or [0]))
        until = [0, *itertools.accumulate(lost)]
        missing = counted = 0  # counted are those before this place in `until`
        for first, last, gap in sorted(self._beside_holes(times)):
            if gap > max(least, size * (until[last] - until[first])):
                missing += until[max(last, counted)] - until[max(first, counted)]
                counted = max(last, counted)
        # The last packet may say nothing of its duration, and behind it may be an index.
        at_end = seconds_missing / float(usual * (self._stream.time_base or 1))
        is_hole = self._container.format.name in _DENSE and self.bytes_behind > max(least, size * at_end)
        return missing + (round(at_end) if is_hole and at_end > _INTERVAL else 0)

    def _beside_holes(self, times: list[int]) -> Iterator[tuple[int, int, float]]:
        """Give, for each hole, the places of the first and last frame beside it in `times`, and its bytes."""
        for place, gap in self._holes:
            if 0 < place < len(self._times):
                first = min(self._times[max(0, place - _REORDERED) : place])
                last = max(self._times[place : place + _REORDERED])
                if first < last:
                    yield bisect.bisect_left(times, first), bisect.bisect_left(times, last), gap
