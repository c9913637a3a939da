"""Define the tables that `ablate` trains: the recipe of each, its rows, its folds and what it starts from."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from inti_jax import config
from inti_jax.errors import UsageError, UserError
from inti_jax.host import mirrors, stores
from inti_jax.host.paths import run_below

log = logging.getLogger("inti_jax")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table of cells: every method with every compressor, in every fold and with every seed.

    `methods` and `compressions` map the names that the table prints to arguments of `recipe`.
    """

    recipe: str
    about: str
    methods: Mapping[str, str]
    compressions: Mapping[str, str]
    # The cells of these methods with these compressors are trained before all others.
    first: tuple[Collection[str], Collection[str]]
    folds: tuple[int, ...]  # numbers of the folds; () for a dataset with one split
    steps: int  # of each run, unless others are asked for
    # Returns the backbone as `model.pretrained` takes it, which it may train. Its arguments are the directory
    # of the datasets or its URL, that of the runs, the folds and the backbone that was given.
    prepare: Callable[[Path | str, Path, Sequence[int], str | None], str]

    def spec(self, method: str, compression: str, fold: int | None, seed: int, steps: int) -> str:
        """Return the arguments of the recipe for a cell."""
        chosen = f"{self.methods[method]},{self.compressions[compression]},seed={seed},steps={steps}"
        return chosen if fold is None else f"{chosen},fold={fold}"


def _prepare_digits(data_dir: Path | str, out: Path, folds: Sequence[int], pretrained: str | None) -> str:
    """Build both datasets of digits and train the image model to start from, where they are missing."""
    from inti_jax.data import dataset
    from inti_jax.data.builders import motion_digits, still_digits
    from inti_jax.pretrained import clip_file
    from inti_jax.runs import export
    from inti_jax.training import loop

    for builder in (motion_digits.MotionDigits, still_digits.StillDigits):
        if dataset.find_dataset(builder.name, data_dir) is None:
            log.info("preparing %s in %s", builder.name, data_dir)
            builder(data_dir=dataset.directory_to_write(data_dir)).build()
    if pretrained is not None:
        return pretrained
    backbone = out / "stills.safetensors"
    if not backbone.exists():
        recipe = str(config.recipes()["still_digits"])
        workdir = run_below(out, "stills")
        loop.train(config.load_config(recipe, [f"--config.data.data_dir={data_dir}"]), workdir)
        arrays, description, _ = export.read_run(workdir)
        clip_file.write(backbone, arrays, description)
        mirrors.push(out)
    return stores.shown(str(backbone))


def _find_gestures(data_dir: Path | str, out: Path, folds: Sequence[int], pretrained: str | None) -> str:
    """Return `pretrained`. Raises UsageError without it, and UserError where a fold is not prepared."""
    from inti_jax.data import dataset

    if pretrained is None:
        raise UsageError("egogestar needs --pretrained: the file of a DINOv2 ViT-S/14 that `convert` wrote")
    for fold in folds:
        name = f"egogestar_fold{fold}"
        if dataset.find_dataset(name, data_dir) is None:
            raise UserError(
                f"{data_dir} has no dataset `{name}`: run `python -m inti_jax.prepare egogestar "
                f"--source EgoGestAR/testvideo --fold {fold} --data_dir {data_dir} --name {name}`"
            )
    return pretrained


_METHODS = {name: f"method={name}" for name in ("full", "st_adapter", "zero_i2v", "aim", "lora")}
# Compressors that halve the frames once, after a quarter of the blocks.
_HALVINGS = {name: f"compression={name}" for name in ("drop", "mean", "static")}
_FROM_FIRST = "compression=inti,start=first"
_NONE = {"none": "compression=none"}
_TOME = {"tome": "compression=tome"}

EXPERIMENTS = {
    "motion_digits": Experiment(
        recipe="ablation",
        about="a tiny image model, which is trained first, on the embedded dataset motion_digits",
        methods={"full": "method=full", "linear+temporal": "method=linear,temporal=attention"} | _METHODS,
        compressions=_NONE
        | _HALVINGS
        | {
            "inti(point)": "compression=inti,scales=point",
            "inti(local)": "compression=inti,scales=local",
            "inti(global)": "compression=inti,scales=global",
            "inti": "compression=inti",
        }
        | _TOME,
        first=((), ()),
        folds=(),
        steps=400,
        prepare=_prepare_digits,
    ),
    "egogestar": Experiment(
        recipe="egogestar",
        about="DINOv2's ViT-S/14 on the gestures of EgoGestAR, in five folds",
        methods={"linear": "method=linear"} | _METHODS,
        compressions=_NONE
        # Costs half of eight frames: is it compression that a row gains by, or fewer frames?
        | {"none with 4 frames": "compression=none,frames=4"}
        | _HALVINGS
        | {
            "inti": "compression=inti",
            # Frozen blocks never saw a mean of frames. So the rest is asked of blends that start near one.
            "static from first": "compression=static,start=first",
            "inti from first": _FROM_FIRST,
            "inti from 0.98 of first": f"{_FROM_FIRST},first_weight=0.98",
            "inti(point) from first": f"{_FROM_FIRST},scales=point",
            "inti(local) from first": f"{_FROM_FIRST},scales=local",
            "inti(region) from first": f"{_FROM_FIRST},scales=region",
            "inti(global) from first": f"{_FROM_FIRST},scales=global",
            "inti from first after 2": f"{_FROM_FIRST},after=(2,)",
            "inti from first after 6": f"{_FROM_FIRST},after=(6,)",
            "inti from first after 3+6": f"{_FROM_FIRST},after=(3,6)",
            "inti from first in groups of 4": f"{_FROM_FIRST},group=4",
        }
        | _TOME,
        first=(
            ("st_adapter", "zero_i2v"),
            ("none", "drop", "mean", "inti", "static from first", "inti from first"),
        ),
        folds=(1, 2, 3, 4, 5),
        steps=240,
        prepare=_find_gestures,
    ),
}
