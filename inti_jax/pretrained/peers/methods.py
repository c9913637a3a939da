"""Map the tensors of AIM, ST-Adapter and ZeroI2V to our parameters, and infer each method's settings.

A checkpoint of AIM or ZeroI2V is mmaction's, `{meta, state_dict}`: the whole image tower with the added
modules under `backbone.`, and the classifier `cls_head.fc_cls`. ST-Adapter's is `{model, optimizer, ...}`
with only what it trained. The layouts are those of github.com/taoyang1122/adapt-image-models,
github.com/linziyi96/st-adapter and github.com/leexinhao/ZeroI2V.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from inti_jax.config.backbones import BACKBONES, CLIP_MEAN, CLIP_STD, OPENAI, BackboneSize
from inti_jax.errors import UsageError, UserError
from inti_jax.models.clip import Architecture
from inti_jax.pretrained import clip_rules, matching
from inti_jax.pretrained.clip_file import Description
from inti_jax.pretrained.clip_rules import SAME, Layout, Naming, Rule
from inti_jax.pretrained.sources import ForeignCheckpoint

# `img_norm_cfg` of AIM and ZeroI2V, for pixels from 0 to 255: CLIP's statistics but for rounding and a slip.
_MMACTION_MEAN = (122.769 / 255, 116.74 / 255, 104.04 / 255)
_MMACTION_STD = (68.493 / 255, 66.63 / 255, 70.321 / 255)

_TEMPORAL = Layout(  # [1, T, D]
    lambda shape: (1, *shape), lambda array, _: array[0], lambda array: array[None]
)
_DEPTHWISE = Layout(  # a Conv3d over time alone, [C, 1, 3, 1, 1]
    lambda shape: (shape[1], 1, shape[0], 1, 1),
    lambda array, _: array[:, 0, :, 0, 0].T,
    lambda array: array.T[:, None, :, None, None],
)
_BLOCK, _ADAPTERS = "transformer.resblocks.{i}", "adapters.{i}"


@dataclasses.dataclass(frozen=True)
class Method:
    """A published method: its names, and the settings that its checkpoints do not tell.

    `asked` maps the names of these settings to the values that were published.
    """

    title: str
    adaptation: str  # `model.adaptation`
    naming: Naming
    marker: re.Pattern[str]  # a name that no other method has; its group 1 is the prefix of all names
    settings: Callable[["Found"], dict[str, Any]]  # infers the method's section of the config
    asked: Mapping[str, str]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def has_tower(self) -> bool:
        """True where the checkpoint holds the image tower."""
        return any(rule.ours.startswith("tower.") for rule in self.naming.rules)


@dataclasses.dataclass(frozen=True)
class Found:
    """A fine-tuned checkpoint: its method, and its arrays by our path."""

    method: Method
    matched: matching.Matched

    def size(self, path: str, dimension: int) -> int:
        """Read a dimension of their array for `path`.

        Raises UserError where the array is missing or has fewer dimensions.
        """
        parts = self.matched.parts.get(path)
        shape = parts[0][2].shape if parts else ()
        if len(shape) <= dimension:
            kind = "wrong" if parts else "missing"
            name = next(
                clip_rules.renamed(path, rule) for rule in self.matched.naming.rules if rule.fits(path)
            )
            raise UserError(f"{self.matched.path}: {kind}: {self.matched.key(name)}, which tells the model")
        return shape[dimension]

    @property
    def settings(self) -> dict[str, Any]:
        """The method's section of the config, as far as the checkpoint tells it."""
        return self.method.settings(self)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.size("head.kernel", 0)

    @property
    def width(self) -> int:
        """The width of the tower."""
        return self.size("head.kernel", 1)

    @property
    def frames(self) -> int | None:
        """T, where the checkpoint has a temporal embedding."""
        return self.size("temporal.embedding", 1) if "temporal.embedding" in self.matched.parts else None

    @property
    def layers(self) -> int:
        """The number of blocks."""
        blocks = (path.split(".")[1] for path in self.matched.parts if path.startswith("adapters."))
        return 1 + max(map(int, blocks), default=-1)

    def describe(self) -> Description:
        """Describe the image tower that the checkpoint holds.

        Raises UserError where it is none of OpenAI's sizes, on which the methods were published.
        """
        patch = self.size("tower.patch_embed.kernel", 2)
        positions = self.size("tower.positional_embedding", 0) - 1
        side = math.isqrt(max(positions, 0))
        if side**2 != positions or not side:
            raise UserError(f"{self.matched.path}: {positions} positions are not a square grid")
        # Other families have towers of the same width and depth.
        known = {
            name: size
            for name, size in BACKBONES.items()
            if size == BackboneSize(size.width, size.layers, size.heads, size.patch, size.resolution)
        }
        fitting = {
            dataclasses.replace(size, resolution=side * patch)
            for size in known.values()
            if (size.width, size.layers, size.patch) == (self.width, self.layers, patch)
        }
        if not fitting:
            raise UserError(
                f"{self.matched.path} has width {self.width}, {self.layers} layers and patches of {patch}, "
                f"which is none of {', '.join(known)}"
            )
        architecture = Architecture(fitting.pop(), None, None, OPENAI)
        return Description(architecture, self.method.mean, self.method.std)


def find(source: ForeignCheckpoint) -> Found | None:
    """Find a fine-tuned model of one of the methods in a checkpoint; None where there is none.

    Raises UserError where there are several, or where a name occurs twice.
    """
    keys = matching.unwrapped(source.path, source.arrays)
    for method in METHODS:
        prefixes = {match[1] for match in map(method.marker.fullmatch, keys) if match}
        if len(prefixes) > 1:  # such as the averages beside the weights
            prefixes = {prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= matching.PLAIN}
            if len(prefixes) != 1:
                raise UserError(f"{source.path} holds {method.title} several times: save the one you want")
        for prefix in prefixes:
            return Found(method, matching.assign(source.path, method.naming, keys, source.arrays, prefix))
    return None


def check_asked(found: Found, given: Mapping[str, Any]) -> None:
    """Raise UsageError where `given` lacks a setting that is asked for, or has one that the method has not.

    `given` maps all names of such settings to their values, None where they were not given.
    """
    method, path = found.method, found.matched.path
    for name in sorted(given):
        if given[name] is not None and name not in method.asked:
            if name == "frames":
                raise UsageError(
                    f"{path} has a temporal embedding of {found.frames} frames: leave out --frames"
                )
            raise UsageError(
                f"{path} is a fine-tuned {method.title}, which has no {name}: leave out --{name}"
            )
    missing = [f"--{name} ({said})" for name, said in method.asked.items() if given.get(name) is None]
    if missing:
        raise UsageError(
            f"{path} is a fine-tuned {method.title}, whose tensors do not tell all of its settings: give "
            f"{' and '.join(missing)}"
        )


def _tower(theirs: str) -> tuple[Rule, ...]:
    """Make the rules of CLIP's image tower with its names below `theirs`."""
    return tuple(
        dataclasses.replace(rule, theirs=theirs + rule.theirs.removeprefix("visual."))
        for rule in clip_rules.OPENAI.rules
        if rule.ours.startswith("tower.")
    )


def _mmaction(name: str, places: Mapping[str, str]) -> Naming:
    """Make the naming of AIM or ZeroI2V, whose modules `places` maps to our places in the block."""
    adapters = (
        rule
        for theirs, ours in places.items()
        for fc, direction in (("D_fc1", "down"), ("D_fc2", "up"))
        for rule in clip_rules.linear(f"backbone.{_BLOCK}.{theirs}.{fc}", f"{_ADAPTERS}.{ours}.{direction}")
    )
    rules = (
        *_tower("backbone."),
        *adapters,
        Rule("backbone.temporal_embedding", "temporal.embedding", _TEMPORAL),
        *clip_rules.linear("cls_head.fc_cls", "head"),
    )
    return Naming(name, rules, (), "backbone.", ())


def _st_adapter_rules() -> tuple[Rule, ...]:
    rules = []
    for theirs, ours in (("adapter_pre_attn", "before_attn"), ("adapter_pre_mlp", "before_mlp")):
        there, here = f"{_BLOCK}.{theirs}", f"{_ADAPTERS}.{ours}"
        rules += [
            *clip_rules.linear(f"{there}.fc1", f"{here}.down"),
            Rule(f"{there}.conv.weight", f"{here}.conv.kernel", _DEPTHWISE),
            Rule(f"{there}.conv.bias", f"{here}.conv.bias", SAME),
            *clip_rules.linear(f"{there}.fc2", f"{here}.up"),
        ]
    return (*rules, *clip_rules.linear("fc", "head"))


def share(inner: int, width: int) -> float:
    """Give the share of `width` that the models turn back into exactly `inner` channels."""
    share = inner / width
    return share if int(share * width) == inner else math.nextafter(share, math.inf)


def _aim_settings(found: Found) -> dict[str, Any]:
    inner = found.size("adapters.0.attn_out.down.kernel", 0)
    two = "adapters.0.temporal_in.down.kernel" in found.matched.parts
    return {"bottleneck": share(inner, found.width), "temporal_adapters": 2 if two else 1}


def _st_adapter_settings(found: Found) -> dict[str, Any]:
    parts = ("attn", "mlp")
    before = [part for part in parts if f"adapters.0.before_{part}.down.kernel" in found.matched.parts]
    before = before or ["mlp"]  # named by the error that its tensors are missing
    return {"width": found.size(f"adapters.0.before_{before[0]}.down.kernel", 0), "before": before}


def _zero_i2v_settings(found: Found) -> dict[str, Any]:
    return {"bottleneck": share(found.size("adapters.0.attn_in.down.kernel", 0), found.width)}


_SCALE = "0.5 for Kinetics-400, 1 for Something-Something V2"
_SAMPLING = (
    "for Kinetics-400 dense:16 with 8 frames, dense:8 with 16, dense:4 with 32; uniform for "
    "Something-Something V2"
)

METHODS = (
    Method(
        "AIM",
        "aim",
        _mmaction(
            "AIM",
            {
                "T_Adapter_in": "temporal_in",
                "T_Adapter": "temporal_out",
                "S_Adapter": "attn_out",
                "MLP_Adapter": "mlp_beside",
            },
        ),
        re.compile(r"((?:.*\.)?)backbone\.transformer\.resblocks\.0\.T_Adapter\.D_fc1\.weight"),
        _aim_settings,
        {"scale": _SCALE, "sampling": f"{_SAMPLING} and Diving48"},
        _MMACTION_MEAN,
        _MMACTION_STD,
    ),
    Method(
        "ZeroI2V",
        "zero_i2v",
        _mmaction(
            "ZeroI2V",
            {
                "T_Adapter_in": "attn_in",
                "S_Adapter": "attn_out",
                "MLP_Adapter": "mlp_in",
                "MLP_Adapter_out": "mlp_out",
            },
        ),
        re.compile(r"((?:.*\.)?)backbone\.transformer\.resblocks\.0\.T_Adapter_in\.D_fc1\.weight"),
        _zero_i2v_settings,
        {
            "scale": f"{_SCALE}, 0.5 for UCF101 and HMDB51",
            "shifts": "B/16: ((-1,1),(1,1)) for Kinetics-400 and with 8 frames, "
            "((-1,1),(1,1),(-2,1),(2,1)) for Something-Something V2 and for UCF101 and HMDB51 with 32 "
            "frames; L/14: ((-1,2),(1,2)) with 8 frames, ((-1,2),(1,2),(-2,2)) for Kinetics-400 with 32, "
            "((-1,2),(1,2),(-2,1),(2,1),(-3,1)) for Something-Something V2",
            "sampling": f"{_SAMPLING}, UCF101 and HMDB51",
        },
        _MMACTION_MEAN,
        _MMACTION_STD,
    ),
    Method(
        "ST-Adapter",
        "st_adapter",
        Naming("ST-Adapter", _st_adapter_rules(), (), "", ()),
        re.compile(r"((?:.*\.)?)transformer\.resblocks\.0\.adapter_pre_(?:attn|mlp)\.fc1\.weight"),
        _st_adapter_settings,
        {"frames": "8, 16 or 32 for Kinetics-400, 8 for Something-Something V2", "sampling": _SAMPLING},
    ),
)
