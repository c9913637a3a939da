"""Find the backbone of a run: its size, and the facts about the weights that it starts from.

A config names the size, or leaves it to the file of weights with `model.backbone` = "auto". Either way it is
found once, and the run's record keeps it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from inti_jax import config
from inti_jax.config import Config, ConfigError, Model
from inti_jax.config.backbones import AUTO, BACKBONES, Backbone, describe, published
from inti_jax.errors import UserError
from inti_jax.host import stores
from inti_jax.hub import names, repository
from inti_jax.hub.names import HubName, Place
from inti_jax.pretrained import clip_file, file_kinds
from inti_jax.pretrained.clip_file import Description
from inti_jax.pretrained.converted import check_there, open_converted
from inti_jax.pretrained.sources import is_run
from inti_jax.runs.record import RunRecord


def find_backbone(settings: Config, earlier: RunRecord | None = None) -> Backbone:
    """Find the backbone of `model.backbone` and `model.pretrained`, which is converted first where necessary.

    `earlier` is the record of the run that goes on, which has its weights in its checkpoints: where the file
    is gone, the backbone is taken from there. Raises ConfigError where `model.pretrained` is no file of
    weights, has other weights than those of `earlier`, is of another backbone than the one named, lacks what
    the classifier starts from, or is of a size that does not suit the config.
    """
    model = settings.model
    if model.pretrained == "random":
        return published(model.backbone)
    if earlier is not None and _gone(model.pretrained, earlier.config.model.pretrained):
        config.check_size(settings, earlier.backbone.size)
        return earlier.backbone
    try:
        file = open_converted(model.pretrained)
    except UserError as error:
        raise ConfigError(f"config: `model.pretrained`: {error}") from None
    if earlier is not None and earlier.backbone.sha256 != file.hash:
        raise ConfigError(
            f"config: `model.pretrained` is {model.pretrained}, which holds other weights ({file.hash}) than "
            f"those that this run started from ({earlier.backbone.sha256 or 'random'}): give the same, or "
            "choose another --workdir"
        )
    found = _described(model, file.description, file.hash)
    config.check_size(settings, found.size)
    return found


def pin(settings: Config, earlier: RunRecord | None = None) -> Config:
    """Return the config with names on the Hub at the commits that they stand for now.

    `earlier` is the record of the run that goes on: a name without a revision stays at the commit that is
    there. Raises ConfigError where a name is not found; see `repository.pin`.
    """
    model, before = settings.model, None if earlier is None else earlier.config.model
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(
            model,
            pretrained=_pinned("pretrained", model, before, names.place),
            start_from=_pinned("start_from", model, before, names.local_or_uri),
        ),
    )


def _pinned(key: str, model: Model, earlier: Model | None, read: Callable[[str], Place]) -> str:
    """Pin the value of a key of the config as `pin` does; a path stays as it is."""
    text, before = getattr(model, key), "" if earlier is None else getattr(earlier, key)
    place, theirs = _on_hub(text, read), _on_hub(before, read)
    if place is None or text == before:
        return text
    if theirs is not None and dataclasses.replace(theirs, revision=None) == place:
        return before
    try:
        return str(repository.pin(place))
    except UserError as error:
        raise ConfigError(f"config: `model.{key}`: {error}") from None


def _gone(pretrained: str, before: str) -> bool:
    """Tell whether a run that goes on with `pretrained` may take its backbone from its record.

    That is so where the file is gone, or the weights are those on the Hub that it started from.
    """
    if _on_hub(pretrained):
        return pretrained == before
    return not stores.is_url(pretrained) and not Path(pretrained).exists()


def _on_hub(text: str, read: Callable[[str], Place] = names.place) -> HubName | None:
    """Read the name of something on the Hub; return None for a path, a URL or no text."""
    if not text or stores.is_url(text):
        return None
    place = read(text)
    return place if isinstance(place, HubName) else None


def check_early(settings: Config, workdir: Path) -> None:
    """Raise those errors of `find_backbone` that show before any weights are read or any device is touched.

    A run in `workdir` that goes on is left to `find_backbone`.
    """
    model = settings.model
    if model.pretrained == "random" or is_run(workdir):
        return
    try:
        path = names.place(model.pretrained)
        if isinstance(path, HubName):
            repository.check_installed(path)
            return  # it is downloaded and converted first
        check_there(path)
        if not file_kinds.is_own(path):
            return  # it is converted first
        header = clip_file.read_header(path)
    except UserError as error:
        raise ConfigError(f"config: `model.pretrained`: {error}") from None
    config.check_size(settings, _described(model, header.description, header.hash).size)


def _described(model: Model, description: Description, sha256: str) -> Backbone:
    """Take from the description of a file what a run keeps; see `find_backbone` for the errors."""
    architecture = description.architecture
    if model.backbone != AUTO and not architecture.image.alike(BACKBONES[model.backbone]):
        raise ConfigError(
            f"config: `model.backbone` is {model.backbone}, but {model.pretrained} holds "
            f'{describe(architecture.image)}: set it to "{AUTO}", which takes what the file holds'
        )
    embed = None
    if model.head.init == "text":
        if architecture.text is None or description.vocabulary is None:
            raise ConfigError(
                f'config: `model.head.init` is "text", but {model.pretrained} has no text tower with its '
                "vocabulary: convert a whole CLIP, with --vocab where its files lack one"
            )
        embed = architecture.embed
    return Backbone(
        architecture.image, architecture.numerics, description.mean, description.std, embed, sha256
    )
