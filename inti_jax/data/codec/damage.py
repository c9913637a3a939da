"""Count the doubtful frames of a video: those that FFmpeg flags as damaged, and those that are missing."""

import bisect
import itertools
import math
import statistics
from array import array
from collections.abc import Iterator

import av

# Containers that hold hardly anything besides packets, so bytes outside packets are lost data. Other
# containers (WMV, transport streams) have such bytes in undamaged files too, where the time between packets
# is long.
_DENSE = ("matroska,webm", "flv")
# A hole in such a container is a run of bytes that belong to no packet. Its least size is the largest of:
# _HOLE_TIMES the median gap between packets, _HOLE_BYTES, and _HOLE_SHARE of the bytes that the missing
# frames would have taken.
_HOLE_TIMES, _HOLE_BYTES, _HOLE_SHARE = 10, 256, 0.5
# Packets on each side of a hole to search for the frames that are presented next to it. Packets are in
# decoding order, and usual encoders move no frame further than this from its place in presentation order.
_REORDERED = 8
# A step between two timestamps of more than this many median intervals has lost a frame. The margin is wide
# because some containers round timestamps to milliseconds.
_INTERVAL = 1.6
# Codecs in which each packet is a picture to show. Other codecs also have packets that only help to decode.
_SHOWN = ("h264", "hevc", "vp9", "av1", "libdav1d")


class DoubtfulFrames:
    """Count the doubtful frames of a stream while the whole stream is decoded.

    A doubtful frame may not show what was filmed. These count:

    - Frames that FFmpeg flags: it concealed damaged or missing parts of them. Frames predicted from those are
      not flagged.
    - Packets that the container's demuxer flags: the file lacks a part of them.
    - Packets after the first decoded frame for which the decoder gave no frame.
    - Frames without a packet, if the container does not announce its number of frames. The timestamps have
      to leave room for them, and the file has to have a hole there: a flagged packet or, in Matroska, WebM
      and Flash, many more bytes than usual that belong to no packet. A gap in time alone is no damage,
      because many videos have a variable frame rate.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self._container, self._stream = container, stream
        self._flagged = 0
        self._flagged_times: set[int] = set()
        self._times, self._sizes = array("q"), array("q")  # pts and bytes of the stream's packets
        self._shown = array("q")  # pts of the decoded frames
        self._interlaced = False
        self._end: int | None = None  # byte offset at which the packets so far end
        self._gaps = array("q")  # bytes outside packets before each packet of any stream
        # Holes: the position in `_times` before which frames may be missing, and the bytes outside packets
        # there (infinite for a flagged packet).
        self._holes: list[tuple[int, float]] = []

    def add_packet(self, packet: av.Packet) -> None:
        """Record a packet of any of the file's streams; packets come in file order."""
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
        """Record a decoded frame of the stream."""
        self._flagged += frame.is_corrupt and frame.pts not in self._flagged_times
        self._interlaced |= frame.interlaced_frame
        if frame.pts is not None:
            self._shown.append(frame.pts)

    @property
    def bytes_behind(self) -> int:
        """Number of bytes in the file after the packets recorded so far."""
        return self._container.size - (self._end or self._container.size)

    def count(self, seconds_missing: float) -> tuple[int, int]:
        """Return the number of damaged frames and the number of missing frames.

        The file ends `seconds_missing` earlier than it announces.
        """
        return self._flagged, self._not_decoded() + self._not_in_the_file(seconds_missing)

    def _not_decoded(self) -> int:
        # In interlaced video, two packets can make one frame.
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
        missing = counted = 0  # frames lost before position `counted` in `until` are counted already
        for first, last, gap in sorted(self._beside_holes(times)):
            if gap > max(least, size * (until[last] - until[first])):
                missing += until[max(last, counted)] - until[max(first, counted)]
                counted = max(last, counted)
        # The end needs a margin in time and in bytes: the last packet may lack a duration, and an index may
        # follow.
        at_end = seconds_missing / float(usual * (self._stream.time_base or 1))
        is_hole = self._container.format.name in _DENSE and self.bytes_behind > max(least, size * at_end)
        return missing + (round(at_end) if is_hole and at_end > _INTERVAL else 0)

    def _beside_holes(self, times: list[int]) -> Iterator[tuple[int, int, float]]:
        """Yield for each hole the positions in `times` of the frames before and after it, and its bytes."""
        for place, gap in self._holes:
            if 0 < place < len(self._times):
                first = min(self._times[max(0, place - _REORDERED) : place])
                last = max(self._times[place : place + _REORDERED])
                if first < last:
                    yield bisect.bisect_left(times, first), bisect.bisect_left(times, last), gap
