"""Read the arguments that say which frames of a source a model sees, and how far its windows are apart."""

import argparse
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from inti_jax.config import Data
from inti_jax.errors import UsageError

if TYPE_CHECKING:
    from inti_jax.streaming.pacing import ModelFrame
    from inti_jax.streaming.sources import Frame

log = logging.getLogger("inti_jax")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the arguments to a command's or to a group of them."""
    parser.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="start a window every N frames of the model, a multiple of the frames that its compressors make "
        "one (default: about half a window)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="show the model each N-th frame (default: data.stride of the run, as predict does)",
    )
    group.add_argument(
        "--fps", type=float, metavar="F", help="show the model F frames a second, by the frames' times"
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError where a value of these arguments is out of range."""
    for name in ("every", "stride", "fps"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"--{name} is {value}: it should be above 0")


def chooser(
    arguments: argparse.Namespace, data: Data, window: int
) -> "Callable[[Iterable[Frame]], Iterator[ModelFrame]]":
    """Make what chooses the frames of a model with windows of `window` frames, trained with `data`."""
    from inti_jax.streaming import pacing
    from inti_jax.streaming.engine import own_stride

    if arguments.fps is not None:
        return functools.partial(pacing.by_rate, rate=arguments.fps, size=data.height_width, most=window)
    if data.sampling == "uniform" and arguments.stride is None:
        log.warning(
            "the run was trained on %d frames spread over a whole video (data.sampling=uniform), and sees "
            "every frame here: --fps or --stride tells how far they should be apart",
            data.num_frames,
        )
    return functools.partial(
        pacing.by_stride, stride=arguments.stride or own_stride(data), size=data.height_width
    )
