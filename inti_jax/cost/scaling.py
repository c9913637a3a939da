"""Compare a training step over several topologies: its predicted time, efficiency and need of clips."""

import dataclasses
from collections.abc import Sequence

from inti_jax.cost.topology import Compiled


@dataclasses.dataclass(frozen=True)
class Scale:
    """One topology. Figures are for one chip, and times are in seconds.

    A step takes at least `overlapped` seconds, where all its parts run at once, and `in_turn` where they run
    one after another, both at the chip's peak rates. The efficiencies are videos a second, compared with
    those of the first topology of the same chip that fits. All that follows from times is None where the step
    does not fit or a rate is not known.
    """

    compiled: Compiled
    videos: float  # of a step
    sent: float  # bytes over the links to other chips
    sent_between_slices: float  # bytes over the data centre's network
    overlapped: float | None
    in_turn: float | None
    efficiency_overlapped: float | None
    efficiency_in_turn: float | None
    clips: float | None  # a second, so that a step of `overlapped` does not wait
    cores: float | None  # of its host that decode them


def compare(
    compiled: Sequence[Compiled], batches: Sequence[int], clips_per_core: float | None = None
) -> list[Scale]:
    """Compare the compiled steps of one model, each with the videos of its batch over all chips.

    `clips_per_core` are the clips a second that one core of a host loads.
    """
    first: dict[str, tuple[float, float]] = {}  # videos a second by the name of the chip
    found = []
    for one, batch in zip(compiled, batches, strict=True):
        videos = batch / one.devices
        overlapped = in_turn = clips = None
        efficiencies: tuple[float | None, float | None] = (None, None)
        bounds = one.roofline
        if one.fits and bounds is not None and bounds.network is not None:
            parts = (bounds.compute, bounds.hbm, bounds.interconnect, bounds.network)
            overlapped, in_turn = max(parts), sum(parts)
            clips = videos / overlapped
            speeds = (clips, videos / in_turn)
            reference = first.setdefault(one.topology.partition(":")[0], speeds)
            efficiencies = (speeds[0] / reference[0], speeds[1] / reference[1])
        found.append(
            Scale(
                one,
                videos,
                _sent(one, "chips"),
                _sent(one, "slices"),
                overlapped,
                in_turn,
                *efficiencies,
                clips,
                None if clips is None or clips_per_core is None else clips / clips_per_core,
            )
        )
    return found


def _sent(compiled: Compiled, between: str) -> float:
    return sum((one.sent for one in compiled.collectives if one.between == between), start=0.0)


def render(scales: Sequence[Scale]) -> str:
    """Format a comparison as a table of text with its legend."""
    from inti_jax.cli.tables import text_table

    headers = ["topology", "chips", "videos", "GiB", "ICI MB", "DCN MB"]
    headers += ["compute", "HBM", "ICI", "DCN", "step ms", "efficiency", "clips/s"]
    decoding = any(scale.cores is not None for scale in scales)
    legend = [
        "Of one chip: videos of a step, peak memory, what it sends to chips (ICI) and between slices (DCN),",
        "and milliseconds at the published peak rates. A step takes from the longest part, if all overlap,",
        "to their sum, if none do. The efficiency, of both, is against the first topology of the same chip.",
        "So many clips/s supply the shorter step" + (", and so many cores load them." if decoding else "."),
    ]
    cells = [_cells(scale) + ([_figure(scale.cores)] if decoding else []) for scale in scales]
    return "\n".join([text_table(headers + ["cores"] * decoding, cells), "", *legend])


def _cells(scale: Scale) -> list[str]:
    one = scale.compiled
    cells = [one.topology, str(one.devices), f"{scale.videos:g}", _figure(one.peak_hbm_gib, 2)]
    if not one.fits or one.roofline is None:
        return [*cells, *[""] * 6, "" if one.fits else "does not fit", "", ""]
    bounds = one.roofline
    parts = (bounds.compute, bounds.hbm, bounds.interconnect, bounds.network)
    return [
        *cells,
        _figure(scale.sent, 1, 1e-6),
        _figure(scale.sent_between_slices, 1, 1e-6),
        *(_figure(part, 1, 1e3) for part in parts),
        _span(scale.overlapped, scale.in_turn, 1, 1e3),
        _span(scale.efficiency_overlapped, scale.efficiency_in_turn, 0, 100.0, " %"),
        _figure(scale.clips, 0),
    ]


def _figure(value: float | None, digits: int = 1, unit: float = 1.0) -> str:
    return "" if value is None else f"{unit * value:.{digits}f}"


def _span(low: float | None, high: float | None, digits: int, unit: float, sign: str = "") -> str:
    return "" if low is None else f"{_figure(low, digits, unit)} to {_figure(high, digits, unit)}{sign}"
