"""Make the page that shows explanations: film strips of frames with maps over them, tables and bars."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from inti_jax.config.backbones import called
from inti_jax.errors import UserError
from inti_jax.evaluation.explanation import Explanation, Layer
from inti_jax.host.names import printable
from inti_jax.hub.names import Place
from inti_jax.models import attribution
from inti_jax.models.adaptation import temporal_modules
from inti_jax.pages import pictures, render, write
from inti_jax.runs import evaluations
from inti_jax.runs.evaluations import Setting
from inti_jax.runs.record import RunRecord

_TOP = 5  # labels of a prediction


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A frame and the map over it. `frame` is the name of its class in the page's style."""

    frame: str
    alternative: str  # says in words what the picture shows
    overlay: str = ""  # a data URI
    notes: Sequence[str] = ()  # lines below it


class Page:
    """The page of the explanations of one run's answers, which are added one by one."""

    def __init__(self, run: Place, record: RunRecord):
        """Start the page of the model that `run`, a directory, a file or a name on the Hub, holds."""
        self._facts = _facts(run, record)
        self._title = f"What {printable(run.name)} looked at"
        self._convolves = "conv" in temporal_modules(record.config.model)
        self._compresses = record.config.model.compression.kind != "none"
        self._videos: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        self._frames: dict[str, str] = {}  # data URIs by class
        self._correlations: list[tuple[float | None, float | None]] = []

    def add(self, path: Path, found: Explanation) -> None:
        """Add the explanation of the answer on a video."""
        prefix = f"v{len(self._videos)}"
        height, width = found.frames.shape[1:3]
        self._videos.append(
            {
                "name": printable(str(path)),
                "id": prefix,
                "ratio": f"{width} / {height}",
                "small": max(height, width) <= 64,
                "clip": _clip(found),
                "predictions": _predictions(found),
                "heat": self._heat(prefix, found),
                "layers": self._layers(prefix, found),
                "together": self._together(prefix, found) if len(found.layers) > 1 else None,
                "merged": self._merged(prefix, found),
                "rows": _rows(found),
                "correlations": (found.rollout_correlation, found.share_correlation),
                "count": len(found.frames),
            }
        )
        for number, frame in enumerate(found.frames):
            self._frames[f"{prefix}f{number}"] = pictures.frame(frame)
        self._correlations.append((found.rollout_correlation, found.share_correlation))

    def add_failed(self, path: Path, reason: str) -> None:
        """Add a video that could not be explained, with the reason."""
        self._failed.append({"name": printable(str(path)), "reason": printable(reason)})

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        means = [
            float(np.mean(values)) if (values := [one for one in column if one is not None]) else None
            for column in zip(*self._correlations, strict=True)
        ]
        page = render(
            "explain.html",
            title=self._title,
            facts=self._facts,
            videos=self._videos,
            failed=self._failed,
            frames=self._frames,
            means=means,
            compresses=self._compresses,
            convolves=self._convolves,
            heat=pictures.gradient(pictures.HEAT),
            balance=pictures.gradient(pictures.BALANCE),
        )
        write(path, page)

    def _heat(self, prefix: str, found: Explanation) -> dict[str, Any]:
        """Make the strip of heat maps, by rollout."""
        heat = found.on_grid(found.rollout)
        strip = []
        for number, patches in enumerate(heat):
            name, share = _label(found, number), found.frame_rollout[number]
            row, column = np.unravel_index(patches.argmax(), patches.shape)
            notes = [name, f"share {share:.1%}"]
            words = (
                f"{name}: {share:.1%} of the answer; its strongest patch has {patches.max():.2%}, in row "
                f"{row + 1} of {found.grid[0]}, column {column + 1} of {found.grid[1]}"
            )
            if found.prefix:
                words += f"; {_tokens(found)} {found.rollout[number, : len(found.prefix)].sum():.1%}"
            overlay = pictures.overlay(patches, pictures.HEAT, 0.0, heat.max())
            strip.append(_Picture(f"{prefix}f{number}", words, overlay, notes))
        equal = 1 / found.rollout.size
        return {"strip": strip, "high": f"{heat.max():.2%}", "equal": f"{equal:.2%}"}

    def _layers(self, prefix: str, found: Explanation) -> list[dict[str, Any]]:
        """Make the groups of each layer: its input frames under their weights, and what it makes of them."""
        inputs, names = found.frames, [f"{prefix}f{number}" for number in range(len(found.frames))]
        labels = [_label(found, number) for number in range(len(found.frames))]
        layers = []
        for number, layer in enumerate(found.layers):
            blended = _blend(inputs, layer, found)
            made = [f"{prefix}l{number}s{frame}" for frame in range(len(blended))]
            made_labels = [f"blend {frame + 1}" for frame in range(len(blended))]
            self._frames |= dict(zip(made, map(pictures.frame, blended), strict=True))
            layers.append(_layer(layer, found, (names, labels), (made, made_labels)))
            inputs, names, labels = blended, made, made_labels
        return layers

    def _together(self, prefix: str, found: Explanation) -> dict[str, Any]:
        """Make the strip of shares through all layers."""
        shares, equal = found.on_grid(found.shares), 1 / found.ratio
        spread = max(np.abs(shares - equal).max(), attribution.FAR * 2 * equal)
        strip = []
        for number, patches in enumerate(shares):
            words = f"{_label(found, number)}: {_range(patches)} of the blended frame"
            overlay = pictures.overlay(patches, pictures.BALANCE, equal - spread, equal + spread)
            notes = [_label(found, number), f"share {patches.mean():.0%}"]
            strip.append(_Picture(f"{prefix}f{number}", words, overlay, notes))
        return {"strip": strip, "scale": _scale(equal, spread), "frames": len(shares) // found.ratio}

    def _merged(self, prefix: str, found: Explanation) -> dict[str, Any] | None:
        """Make the strip of frames whose merged patches have their mean colour; None where none merged."""
        before, after = found.places.shape[1], int(found.places.max()) + 1
        if before == after:
            return None
        strip = []
        for number, frame in enumerate(found.frames):
            largest = np.bincount(found.places[number]).max()
            colours = _mean_colours(frame, found.places[number, len(found.prefix) :], found.grid)
            words = f"{_label(found, number)}: the largest token stands for {largest} patches"
            notes = [_label(found, number), f"largest: {largest} patches"]
            strip.append(_Picture(f"{prefix}f{number}", words, pictures.exact(colours), notes))
        return {"strip": strip, "before": before - len(found.prefix), "after": after - len(found.prefix)}


def _layer(
    layer: Layer,
    found: Explanation,
    inputs: tuple[list[str], list[str]],
    outputs: tuple[list[str], list[str]],
) -> dict[str, Any]:
    """Make a layer's groups; `inputs` and `outputs` are the frames' classes and labels."""
    prefix = len(found.prefix)
    group = layer.weights.shape[-1]
    patches = layer.weights[:, prefix:]
    equal = 1 / group
    spread = max(float(np.abs(patches - equal).max()), attribution.FAR)
    groups = []
    for number, weights in enumerate(patches):
        members = []
        for place in range(group):
            index = number * group + place
            on_grid = weights[:, place].reshape(found.grid)
            low, high = on_grid.min(), on_grid.max()
            notes = [inputs[1][index], f"{on_grid.mean():.2f}, from {low:.2f} to {high:.2f}"]
            words = f"{inputs[1][index]}: weight of its patches {_range(on_grid)}"
            for name, token in zip(found.prefix, layer.weights[number, :prefix, place], strict=True):
                if name == "class token":
                    notes.append(f"class token {token:.2f}")
                words += f"; {name} {token:.2f}"
            overlay = pictures.overlay(on_grid, pictures.BALANCE, equal - spread, equal + spread)
            members.append(_Picture(inputs[0][index], words, overlay, notes))
        words = f"{outputs[1][number]}: the frames of the group, blended by the weights"
        groups.append((members, _Picture(outputs[0][number], words, notes=[outputs[1][number]])))
    return {
        "block": layer.block,
        "before": len(patches) * group,
        "after": len(patches),
        "group": group,
        "groups": groups,
        "scale": _scale(equal, spread),
        "deviation": f"{patches.std():.2f}",
        "far": f"{attribution.far_from_equal(patches):.0%}",
        "margin": attribution.FAR,
        "equal": f"{equal:.2g}",
    }


def _blend(
    frames: UInt8[np.ndarray, "T H W 3"], layer: Layer, found: Explanation
) -> UInt8[np.ndarray, "S H W 3"]:
    """Blend the pixels of frames by the weights of their patches."""
    weights = layer.weights[:, len(found.prefix) :].reshape(len(layer.weights), *found.grid, -1)
    height, width = frames.shape[1] // found.grid[0], frames.shape[2] // found.grid[1]
    pixels = weights.repeat(height, axis=1).repeat(width, axis=2)  # [S, H, W, g]
    groups = frames.reshape(len(weights), -1, *frames.shape[1:])
    return np.einsum("shwg,sghwc->shwc", pixels, groups).round().clip(0, 255).astype(np.uint8)


def _mean_colours(
    frame: UInt8[np.ndarray, "H W 3"], places: np.ndarray, grid: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Give each patch the mean colour of all patches that merged into its token."""
    rows, columns = grid
    blocks = frame.reshape(rows, frame.shape[0] // rows, columns, frame.shape[1] // columns, 3)
    colours = blocks.mean(axis=(1, 3)).reshape(-1, 3)
    sums = np.zeros((places.max() + 1, 3))
    np.add.at(sums, places, colours)
    counts = np.maximum(np.bincount(places), 1)[:, None]
    return (sums / counts)[places].round().astype(np.uint8).reshape(rows, columns, 3)


def _label(found: Explanation, number: int) -> str:
    if found.seconds is None:
        return f"frame {found.numbers[number]}"
    return f"frame {found.numbers[number]}, {found.seconds[number]:.2f} s"


def _tokens(found: Explanation) -> str:
    return found.prefix[0] if len(found.prefix) == 1 else "tokens before the patches"


def _range(values: Float[np.ndarray, "h w"]) -> str:
    return f"{values.min():.2f} to {values.max():.2f}, {values.mean():.2f} on average"


def _scale(equal: float, spread: float) -> tuple[str, str, str]:
    return f"{equal - spread:.2f}", f"{equal:.2f}", f"{equal + spread:.2f}"


def _clip(found: Explanation) -> str:
    numbers = found.numbers
    text = f"{len(numbers)} frames, numbers {numbers[0]} to {numbers[-1]}"
    if found.seconds is not None:
        text += f", from {found.seconds[0]:.2f} s to {found.seconds[-1]:.2f} s"
    return text


def _predictions(found: Explanation) -> list[dict[str, Any]]:
    best = np.argsort(-found.probabilities, kind="stable")[:_TOP]
    return [
        {
            "label": found.labels[k],
            "probability": f"{found.probabilities[k]:.3f}",
            "width": _width(found.probabilities[k]),
        }
        for k in best
    ]


def _rows(found: Explanation) -> list[dict[str, Any]]:
    """Make the table's row of each frame: its patches' fates, its share in the answer, and its effect."""
    largest = max(np.abs(found.probability_effects).max(), 1e-9)
    fates = found.fates
    return [
        {
            "label": _label(found, number),
            "share": f"{found.frame_shares[number]:.0%}",
            "fates": [_width(fate) for fate in fates[number]],
            "words": "{:.0%} kept, {:.0%} averaged, {:.0%} faded".format(*fates[number]),
            "rollout": f"{found.frame_rollout[number]:.1%}",
            "width": _width(found.frame_rollout[number] / found.frame_rollout.max()),
            "effect": _signed(found.probability_effects[number]),
            "negative": bool(found.probability_effects[number] < 0),
            "half": _width(abs(found.probability_effects[number]) / largest / 2),
            "odds": _signed(found.log_odds_effects[number]),
        }
        for number in range(len(found.frames))
    ]


def _signed(effect: np.floating) -> str:
    return f"{round(float(effect), 3) + 0.0:+.3f}"  # without a negative zero


def _width(share: np.floating) -> str:
    return f"{100 * share:.1f}%"


def _facts(run: Place, record: RunRecord) -> list[tuple[str, str]]:
    """List the facts of a run: what it is, and how good it was when it was last evaluated."""
    model, data = record.config.model, record.config.data
    after = f" after block {', '.join(map(str, model.compression.after))}" if model.compression.after else ""
    return [
        ("run", printable(str(run))),
        ("model", f"{called(model.backbone, record.backbone.size)}, {model.adaptation}"),
        ("compression", f"{model.compression.name}{after}"),
        ("trained on", f"{data.name}, {len(record.dataset.labels)} classes"),
        ("evaluation", _evaluation(run, record)),
    ]


def _evaluation(run: Place, record: RunRecord) -> str:
    try:
        found = evaluations.read(run) if isinstance(run, Path) and run.is_dir() else []
        own = evaluations.by_step(found, Setting.of_run(record))
    except UserError as error:
        return f"cannot be read: {printable(str(error))}"
    if not own:
        return "none is recorded"
    last = own[max(own)]
    metric = "mAP" if record.config.train.multi_label else "top-1"
    return f"{metric} {last.best_by:.1%} at step {last.step}"
