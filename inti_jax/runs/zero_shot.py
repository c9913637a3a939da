"""Give a text head that a run trained other classes, by their names alone."""

import dataclasses
import logging
from collections.abc import Sequence

import jax

from inti_jax.errors import UserError
from inti_jax.hub.names import Place
from inti_jax.models import freezing
from inti_jax.models.parameters import Params
from inti_jax.pretrained import text_head
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.encoders import TextEncoder
from inti_jax.runs.record import RunRecord

log = logging.getLogger("inti_jax")

_CLASSES = "head.classes.kernel"


def with_labels(
    record: RunRecord,
    params: Params,
    labels: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    pretrained: Place | None = None,
) -> tuple[RunRecord, Params]:
    """Return the model of a run, its record and its parameters, with other classes.

    The text tower of the CLIP `pretrained`, by default `model.pretrained`, encodes the names of `labels` in
    `templates`, by default `model.head.templates`. The rest of the model is as it was trained. Raises
    UserError where the run's head is not a text head, where `labels` or `templates` are unusable, or where
    that CLIP is missing, is another one, or has no text tower.
    """
    model = record.config.model
    if model.head.init != "text":
        raise UserError(
            f'this run\'s `model.head.init` is "{model.head.init}": only a classifier that starts from class '
            'names, with "text", takes other labels'
        )
    _check(labels, templates)
    path = str(pretrained or model.pretrained)
    try:
        file = open_converted(path)
    except UserError as error:
        raise UserError(
            f"other labels need the text tower of the run's `model.pretrained`: {error}"
        ) from None
    if file.hash != record.backbone.sha256:
        raise UserError(
            f"{path} holds other weights than those that the run started from: give the same as `pretrained`"
        )
    if freezing.trains(model, _CLASSES, record.backbone.size.layers):
        log.warning(
            "the run trained its class embeddings, so embeddings of other labels do not match them: train "
            'with `model.freeze` = ("head.classes",)'
        )
    names = [text_head.class_name(label) for label in labels]
    kernel = text_head.class_embeddings(TextEncoder(file), names, templates or model.head.templates).T
    old = params[_CLASSES]
    dataset = dataclasses.replace(record.dataset, labels=tuple(labels))
    placed = jax.device_put(kernel.astype(old.dtype), old.sharding)
    return dataclasses.replace(record, dataset=dataset), {**params, _CLASSES: placed}


def _check(labels: Sequence[str], templates: Sequence[str] | None) -> None:
    """Raise UserError where labels are missing, empty or repeated, or a template has not one `{}`."""
    if isinstance(labels, str) or not labels:
        raise UserError(f"labels are {labels!r}: give a list of one class name or more")
    if empty := [label for label in labels if not label.strip()]:
        raise UserError(f"a label is {empty[0]!r}: give each class a name")
    if repeated := [label for index, label in enumerate(labels) if label in labels[:index]]:
        raise UserError(f"the label `{repeated[0]}` is given twice")
    for template in templates if templates is not None else ():
        if template.count("{}") != 1:
            raise UserError(f"the template {template!r} should have one {{}} for the class name")
    if templates is not None and not templates:
        raise UserError("there is no template: give at least one, or omit `templates` to use the run's")
