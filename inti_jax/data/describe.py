"""Describe prepared datasets from their manifests: classes, durations, sizes and duplicate videos."""

import collections
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inti_jax.data import manifest
from inti_jax.data.manifest import Manifest, Split, Video
from inti_jax.host import stores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 5  # most labels or videos that a note names
_BARS = 40  # most labels that get a bar and a name each


class Place(NamedTuple):
    """The place of a video: its dataset and split, and its id and label there."""

    dataset: str
    split: str
    id: str
    label: str


class Described(NamedTuple):
    """Prepared datasets by name, and the videos that occur more than once in them.

    Datasets that share a name go by their directories instead.
    """

    directories: dict[str, Path]
    datasets: dict[str, Manifest]
    copies: list[list[Place]]


def describe(directories: Sequence[Path]) -> Described:
    """Read the manifests of prepared datasets.

    Raises UserError where one is missing or cannot be relied on.
    """
    read = {directory: manifest.read(directory) for directory in directories}
    uses = collections.Counter(contents.name for contents in read.values())
    names = {
        directory: contents.name if uses[contents.name] == 1 else str(directory)
        for directory, contents in read.items()
    }
    datasets = {names[directory]: contents for directory, contents in read.items()}
    return Described({name: path for path, name in names.items()}, datasets, find_copies(datasets))


def find_copies(datasets: Mapping[str, Manifest]) -> list[list[Place]]:
    """Group the videos that occur more than once, byte for byte by their SHA-256, in dataset order."""
    places = [
        (name, split_name, video)
        for name, contents in datasets.items()
        for split_name, split in contents.splits.items()
        for video in split.videos
    ]
    uses = collections.Counter(video.sha256 for _, _, video in places)
    copies: dict[str, list[Place]] = {}
    for name, split_name, video in places:
        if uses[video.sha256] > 1:
            copies.setdefault(video.sha256, []).append(Place(name, split_name, video.id, video.label))
    return list(copies.values())


def class_notes(labels: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Write notes on labels without a video, and on labels of `val` without one to train on.

    `counts` are by split and label.
    """
    empty = [label for label in labels if not any(of.get(label) for of in counts.values())]
    found = [f"{_have(empty)} no video: {_named(empty)}"] if empty else []
    return found + _only(labels, counts, "val", "train")


def notes(contents: Manifest) -> list[str]:
    """Write notes on labels that lack videos, at all or in one split, and on duplicate videos."""
    counts = counts_of(contents)
    found = class_notes(contents.labels, counts) + _only(contents.labels, counts, "train", "val")
    copies = find_copies({contents.name: contents})
    if shared := [places for places in copies if len({place.split for place in places}) > 1]:
        pairs = [_pair(places, "split") for places in shared]
        examples = ", ".join(f"{two.id} is {one.id}" for one, two in pairs[:_NAMED])
        found.append(f"{_videos(shared)} of `val` {_are(shared)} in `train` too, byte for byte: {examples}")
    if relabelled := [places for places in copies if len({place.label for place in places}) > 1]:
        pairs = [_pair(places, "label") for places in relabelled]
        examples = ", ".join(
            f"{one.id} ({one.label}) is {two.id} ({two.label})" for one, two in pairs[:_NAMED]
        )
        found.append(f"{_videos(relabelled)} {_are(relabelled)} listed under two labels: {examples}")
    return found


def counts_of(contents: Manifest) -> dict[str, dict[str, int]]:
    """Count the videos of each label, by split."""
    return {
        name: dict(
            collections.Counter(label for video in split.videos for label in contents.labels_of(video))
        )
        for name, split in contents.splits.items()
    }


def counted(split: Split) -> str:
    """Write a split's numbers of videos, of rejected files and of videos with doubtful frames."""
    doubtful = [video.doubtful for video in split.videos if video.doubtful]
    more = f", {len(doubtful)} with doubtful frames ({sum(doubtful)} in all)" if doubtful else ""
    return f"{split.count} videos, {len(split.rejected)} rejected{more}"


def facts(described: Described) -> dict[str, Any]:
    """Return all figures, JSON-able."""
    return {
        "datasets": [
            {
                "directory": stores.shown(str(described.directories[dataset])),
                "name": contents.name,
                "version": contents.version,
                "sha256": contents.sha256,
                "splits": {name: _split_facts(split) for name, split in contents.splits.items()},
                "labels": [
                    {"label": label} | {name: of[label] for name, of in _by_label(contents).items()}
                    for label in contents.labels
                ],
                "notes": notes(contents),
            }
            for dataset, contents in described.datasets.items()
        ],
        "overlap": [{"splits": [*pair], "videos": count} for pair, count in _overlaps(described).items()],
        "copies": [[place._asdict() for place in places] for places in described.copies],
    }


def text(described: Described) -> str:
    """Format the figures as lines for people."""
    lines = []
    for dataset, contents in described.datasets.items():
        directory = stores.shown(str(described.directories[dataset]))
        lines += [f"{contents.name} {contents.version} in {directory}, sha256 {contents.sha256[:16]}"]
        for name, split in contents.splits.items():
            lines += _split_lines(name, split)
        by_label = _by_label(contents)
        width = max(map(len, (*contents.labels, "label")))
        lines += [f"  {'label':<{width}}" + "".join(f"{name:>9}" for name in by_label)]
        lines += [
            f"  {label:<{width}}" + "".join(f"{of[label]:>9}" for of in by_label.values())
            for label in contents.labels
        ]
        lines += [f"  note: {note}" for note in notes(contents)]
    lines += [
        f"{pair[0]} and {pair[1]} share {count or 'no'} video{'s' if count != 1 else ''}, byte for byte"
        for pair, count in _overlaps(described).items()
    ]
    return "\n".join(lines)


def draw(described: Described, pyplot: Any) -> "Figure":
    """Draw class counts, durations, frames and sizes in a colour for each split, for `drawing.png`."""
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
    splits = _named_splits(described)
    _draw_labels(axes[0, 0], described)
    for axis, title, values in (
        (axes[0, 1], "duration (s)", {name: _seconds(split.videos) for name, split in splits.items()}),
        (axes[1, 0], "frames", {name: [v.frames for v in split.videos] for name, split in splits.items()}),
    ):
        axis.hist(list(values.values()), bins=30, label=list(values))
        axis.set(xlabel=title, ylabel="videos")
        axis.legend()
    for name, split in splits.items():
        sizes = collections.Counter((video.width, video.height) for video in split.videos)
        widths, heights = zip(*sizes, strict=True)
        most = max(sizes.values())
        areas = [20 + 300 * count / most for count in sizes.values()]
        axes[1, 1].scatter(widths, heights, areas, alpha=0.5, label=name)
    axes[1, 1].set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes[1, 1].legend()
    return figure


def _draw_labels(axis: "Axes", described: Described) -> None:
    """Draw a bar for each label where there are few, else a line of the sorted counts."""
    for dataset, contents in described.datasets.items():
        bottom = [0] * len(contents.labels)
        few = len(contents.labels) <= _BARS and len(described.datasets) == 1
        for split, of in _by_label(contents).items():
            counts = [of[label] for label in contents.labels]
            name = _split_name(described, dataset, split)
            if few:
                axis.barh(contents.labels, counts, left=bottom, label=name)
                bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
            else:
                axis.plot(sorted(counts, reverse=True), label=name)
        if few:
            axis.invert_yaxis()
        axis.set(**({"xlabel": "videos"} if few else {"xlabel": "labels, by videos", "ylabel": "videos"}))
    axis.legend()


def _split_facts(split: Split) -> dict[str, Any]:
    seconds = _seconds(split.videos)
    sizes = collections.Counter(f"{video.width}x{video.height}" for video in split.videos)
    rates = collections.Counter(f"{video.fps:.6g}" for video in split.videos)
    return {
        "videos": split.count,
        "rejected": len(split.rejected),
        "doubtful": sum(video.doubtful > 0 for video in split.videos),
        "bytes": sum(video.bytes for video in split.videos),
        "seconds": _spread(seconds) | {"total": sum(seconds), "unknown": split.count - len(seconds)},
        "frames": _spread([video.frames for video in split.videos])
        | {"total": sum(video.frames for video in split.videos)},
        "sizes": dict(sizes.most_common()),
        "fps": dict(rates.most_common()),
    }


def _split_lines(name: str, split: Split) -> list[str]:
    found = _split_facts(split)
    lines = [f"  {name}: {counted(split)}, {found['bytes'] / 2**20:.1f} MiB"]
    seconds, frames = found["seconds"], found["frames"]
    if seconds["total"]:
        lines.append(f"    duration (s): {_range(seconds, '.1f')}; {_time(seconds['total'])} in all")
    if seconds["unknown"]:
        lines.append(f"    {seconds['unknown']} without a frame rate, and so without a duration")
    lines.append(f"    frames: {_range(frames, '.0f')}; {frames['total']} in all")
    for key, title in (("sizes", "sizes"), ("fps", "frames a second")):
        common = [f"{value} ({count})" for value, count in found[key].items()]
        more = f", and {len(common) - _NAMED} more" if len(common) > _NAMED else ""
        lines.append(f"    {title}: {', '.join(common[:_NAMED])}{more}")
    return lines


def _overlaps(described: Described) -> dict[tuple[str, str], int]:
    """Count the distinct videos that each pair of splits shares."""
    names = list(_named_splits(described))
    counts = {(one, two): 0 for number, one in enumerate(names) for two in names[number + 1 :]}
    for places in described.copies:
        found = {_split_name(described, place.dataset, place.split) for place in places}
        for pair in counts:
            counts[pair] += found.issuperset(pair)
    return counts


def _named_splits(described: Described) -> dict[str, Split]:
    return {
        _split_name(described, dataset, name): split
        for dataset, contents in described.datasets.items()
        for name, split in contents.splits.items()
    }


def _split_name(described: Described, dataset: str, split: str) -> str:
    return f"{dataset}/{split}" if len(described.datasets) > 1 else split


def _by_label(contents: Manifest) -> dict[str, dict[str, int]]:
    counts = counts_of(contents)
    return {name: {label: of.get(label, 0) for label in contents.labels} for name, of in counts.items()}


def _seconds(videos: Iterable[Video]) -> list[float]:
    return [video.frames / video.fps for video in videos if video.fps > 0]


def _spread(values: Sequence[int] | Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _range(spread: Mapping[str, int | float], form: str) -> str:
    return f"{spread['min']:{form}} to {spread['max']:{form}}, median {spread['median']:{form}}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _pair(places: Sequence[Place], field: str) -> tuple[Place, Place]:
    """Return the first of identical videos, and the first that differs from it in `field`."""
    first = places[0]
    return first, next(place for place in places if getattr(place, field) != getattr(first, field))


def _only(labels: Sequence[str], counts: Mapping[str, Mapping[str, int]], one: str, other: str) -> list[str]:
    """Write a note on labels with videos in split `one` and none in `other`, if neither is empty."""
    if not any(counts.get(one, {}).values()) or not any(counts.get(other, {}).values()):
        return []
    only = [label for label in labels if counts[one].get(label) and not counts[other].get(label)]
    return [f"{_have(only)} videos in `{one}` and none in `{other}`: {_named(only)}"] if only else []


def _have(labels: Sequence[str]) -> str:
    return "1 label has" if len(labels) == 1 else f"{len(labels)} labels have"


def _videos(groups: Sequence[Any]) -> str:
    return "1 video" if len(groups) == 1 else f"{len(groups)} videos"


def _are(groups: Sequence[Any]) -> str:
    return "is" if len(groups) == 1 else "are"


def _named(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(f"`{label}`" for label in labels[:_NAMED]) + more
