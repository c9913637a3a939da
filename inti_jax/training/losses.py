"""Compute training losses, chosen by `train.loss`, and the weights of classes in them.

`train_step` knows no loss: it calls the `Loss` that `make` builds. A new one is a class with the signature of
`Loss`, its name in `train.loss` (config/schema.py), and its entry in `LOSSES`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from inti_jax.config import ConfigError, LossName, Train
from inti_jax.training import mixing


class Targets(NamedTuple):
    """The labels of B videos, with which a loss compares their logits.

    `label` is the class of each video, or, with several labels a video, True for those of each. In a mixed
    batch, `own` is the share of each video's own label, and the rest is the share of its
    partner's, see `mixing.partners`. It is None where nothing is mixed.
    """

    label: Int[Array, " B"] | Bool[Array, "B K"]
    mask: Bool[Array, " B"]  # False: the video did not decode, and its label may be -1
    own: Float[Array, " B"] | None


@runtime_checkable
class Loss(Protocol):
    """A training loss: a function of the logits and targets of a batch, or of one part of it.

    It returns each video's loss in float32. The step averages them over the videos whose mask is True; the
    loss of the others may be anything finite. Where `train.accumulate` is above 1, a loss sees the parts of
    the batch one by one. So one that relates the videos of a batch has to be refused with it, in
    config/checks.py.
    """

    def __call__(self, logits: Float[Array, "B K"], targets: Targets) -> Float[Array, " B"]:
        """Compute the loss of each video."""
        ...


class CrossEntropy:
    """Softmax cross-entropy in nats, with label smoothing and a factor for each class."""

    def __init__(self, settings: Train, class_weights: Float[np.ndarray, " K"] | None):
        self._smoothing = settings.label_smoothing
        self._weights = None if class_weights is None else jnp.asarray(class_weights)

    def __call__(self, logits: Float[Array, "B K"], targets: Targets) -> Float[Array, " B"]:
        """Compute the loss of each video. In a mixed video, each of its two labels has its own factor."""

        def loss_of(label: Int[Array, " B"]) -> Float[Array, " B"]:
            loss = cross_entropy(logits, label, self._smoothing)
            return loss if self._weights is None else loss * self._weights[label]

        return _mixed(loss_of, targets)


class BinaryCrossEntropy:
    """Sigmoid cross-entropy in nats of each class, averaged over the classes, for several labels a video.

    The mean over classes is the default of PyTorch's BCEWithLogitsLoss, with which PySlowFast trains on
    Charades. The targets are smoothed to `smoothing / 2` and `1 - smoothing / 2`, as Keras's
    BinaryCrossentropy does. The class weights are factors on the loss of a class's positives, as PyTorch's
    `pos_weight`.
    """

    def __init__(self, settings: Train, class_weights: Float[np.ndarray, " K"] | None):
        self._smoothing = settings.label_smoothing
        self._weights = None if class_weights is None else jnp.asarray(class_weights)[None, :]

    def __call__(self, logits: Float[Array, "B K"], targets: Targets) -> Float[Array, " B"]:
        """Compute the loss of each video. In a mixed video, the positives of both have their shares."""
        logits = logits.astype(jnp.float32)

        def loss_of(label: Bool[Array, "B K"]) -> Float[Array, " B"]:
            wanted = label * (1 - self._smoothing) + self._smoothing / 2
            positive = -wanted * jax.nn.log_sigmoid(logits)
            if self._weights is not None:
                positive = positive * self._weights
            return (positive - (1 - wanted) * jax.nn.log_sigmoid(-logits)).mean(axis=-1)

        return _mixed(loss_of, targets)


class Contrastive:
    """Symmetric contrastive loss between the videos of a batch and the texts of their classes.

    The similarity of video i and the text of video j is the logit of i for the class of j, so the head has to
    be a text head (`model.head.init="text"`). Where several videos have the same class, the target of a row
    or column is spread evenly over them. The loss is the mean of the Kullback-Leibler divergences from the
    targets of the softmax over texts and of the softmax over videos (ActionCLIP, arXiv:2109.08472). With B
    different classes it is CLIP's loss (arXiv:2103.00020).
    """

    def __init__(self, settings: Train, class_weights: Float[np.ndarray, " K"] | None):
        """Take no settings: config/checks.py refuses smoothing, class weights and mixing with this loss."""

    def __call__(self, logits: Float[Array, "B K"], targets: Targets) -> Float[Array, " B"]:
        """Compute the loss of each video: the mean of its own and of its text's."""
        label, mask = targets.label, targets.mask[None, :]
        similarity = logits.astype(jnp.float32)[:, label]
        same = (label[:, None] == label[None, :]) & mask
        wanted = same / jnp.maximum(same.sum(axis=1, keepdims=True), 1)
        # Finite, because a batch in which no video decoded would have no number otherwise.
        nothing = jnp.finfo(jnp.float32).min
        divergences = [
            optax.losses.kl_divergence(jax.nn.log_softmax(jnp.where(mask, scores, nothing)), wanted)
            for scores in (similarity, similarity.T)
        ]
        return sum(divergences, jnp.zeros(())) / 2


# From each value of `train.loss` to what makes the loss from the settings and the class weights.
LOSSES: dict[LossName, Callable[[Train, Float[np.ndarray, " K"] | None], Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "contrastive": Contrastive,
}


def make(settings: Train, class_weights: Float[np.ndarray, " K"] | None = None) -> Loss:
    """Make the loss that `settings.loss` names. `class_weights` are those of `class_weights`; None: all 1."""
    return LOSSES[settings.loss](settings, class_weights)


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Compute each video's cross-entropy in nats, with `smoothing` of the target spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def _mixed(loss_of: Callable[[Array], Float[Array, " B"]], targets: Targets) -> Float[Array, " B"]:
    """Weigh the losses of both labels of a mixed video by their shares, as mixup and CutMix define it."""
    loss = loss_of(targets.label)
    if targets.own is None:
        return loss
    partner = loss_of(mixing.partners(targets.label))
    return targets.own * loss + (1 - targets.own) * partner


def first_is_right(
    logits: Float[Array, "B K"], label: Int[Array, " B"] | Bool[Array, "B K"]
) -> Bool[Array, " B"]:
    """Tell of each video whether the class with the highest logit is its label, or one of its labels."""
    first = logits.argmax(axis=-1)
    if label.ndim == 1:
        return first == label
    return jnp.take_along_axis(label, first[:, None], axis=1)[:, 0]


def class_weights(
    chosen: Literal["none", "inverse"] | tuple[float, ...], counts: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"] | None:
    """Compute each class's factor on the loss of its videos; None: all 1.

    `counts` are the clips of each class in an epoch. The mean factor over these clips is 1, so that the loss
    keeps its scale: `inverse` is N / (classes * count). Batches are not normalised one by one, so that the
    weight of a video depends on no other. Raises ConfigError where `chosen` does not have K weights, or has
    only zeros for the classes that have clips.
    """
    if chosen == "none":
        return None
    if chosen == "inverse":
        weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    else:
        weights = np.asarray(chosen, np.float64)
    _check_number(weights, counts)
    total = (weights * counts).sum()
    if total <= 0:
        raise ConfigError(
            f"config: `train.class_weights` is {chosen}: it is 0 for all classes with training videos, "
            "and one "
            "at least should be above 0"
        )
    return (weights * counts.sum() / total).astype(np.float32)


def positive_weights(
    chosen: Literal["none", "inverse"] | tuple[float, ...], counts: Float[np.ndarray, " K"], videos: int
) -> Float[np.ndarray, " K"] | None:
    """Compute each class's factor on the loss of its positives, for several labels a video; None: all 1.

    `counts` are the clips with each label in an epoch of `videos` clips. `inverse` is the ratio of negatives
    to positives, as the documentation of PyTorch's `pos_weight` has it, and 1 for a class without positives.
    Raises ConfigError where `chosen` does not have K weights.
    """
    if chosen == "none":
        return None
    if chosen == "inverse":
        weights = np.divide(videos - counts, counts, out=np.ones_like(counts), where=counts > 0)
    else:
        weights = np.asarray(chosen, np.float64)
    _check_number(weights, counts)
    return weights.astype(np.float32)


def _check_number(weights: Float[np.ndarray, " W"], counts: Float[np.ndarray, " K"]) -> None:
    if len(weights) != len(counts):
        raise ConfigError(
            f"config: `train.class_weights` has {len(weights)} weights, but the dataset has {len(counts)} "
            "classes: give one weight for each class, in the order of its labels"
        )
