"""Label a video while it runs: `python -m inti_jax.stream --checkpoint RUN SOURCE`.

In Python, `inti_jax.stream(RUN, every=...)` returns a stream to push frames into; see streaming/engine.py.
"""

import argparse
import json
import logging
import re
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.cli import terminal
from inti_jax.cli.callable_module import make_callable
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import inputs
from inti_jax.host.command import run_command
from inti_jax.streaming import frame_arguments

if TYPE_CHECKING:
    from inti_jax.streaming.engine import Stream

log = logging.getLogger("inti_jax")

_TIMEOUT = 30.0  # seconds
_LARGEST = 16384  # pixels of a side


def main(prog: str = "python -m inti_jax.stream") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Labels windows that slide over a video while it runs, and prints a line of JSON for "
        "each as soon as it is known. What a window shares with the one before it is computed once.",
        epilog="example: ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 -s 320x240 - | "
        "%(prog)s --checkpoint runs/mine --size 320x240 -",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a video file, a camera (/dev/video0), an rtsp:// URL, or - for stdin: an encoded video or, "
        "with --size, raw frames",
    )
    inputs.add_model_arguments(parser)
    frame_arguments.add_arguments(parser)
    parser.add_argument(
        "--topk", type=int, default=5, metavar="K", help="number of labels in a line (default 5)"
    )
    parser.add_argument(
        "--size", type=_size, metavar="WxH", help="the pipe or file has raw frames, RGB24 of this size"
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="frames a second of raw frames, for times (default 25)"
    )
    parser.add_argument(
        "--format", metavar="NAME", help="FFmpeg's input device that takes SOURCE, such as avfoundation"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=_TIMEOUT,
        metavar="S",
        help="give up once no frame came for S seconds; 0 waits for ever (default 30)",
    )
    parser.add_argument(
        "--drop",
        action=argparse.BooleanOptionalAction,
        help="when the model is too slow: drop the frames that wait and start the next window behind them, "
        "or let the source wait (default: drop those of cameras and URLs)",
    )
    arguments = parser.parse_args()
    for name in ("topk", "rate"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} is {value}: it should be above 0")
    if not arguments.timeout >= 0:
        raise UsageError(f"--timeout is {arguments.timeout}: it should be seconds, or 0 to wait for ever")
    if arguments.rate is not None and arguments.size is None:
        raise UsageError("--rate is of raw frames: give their --size too")
    frame_arguments.check(arguments)
    cli.setup_logging()

    # Imported late: --help and a wrong argument should not wait for JAX.
    import numpy as np

    from inti_jax.evaluation import classifier
    from inti_jax.runs import compilation
    from inti_jax.streaming import feed, sources
    from inti_jax.streaming.engine import Stream

    compilation.cache_for_user()
    timeout = arguments.timeout or None
    source = sources.find(
        arguments.source,
        size=arguments.size,
        rate=arguments.rate or sources.USUAL_RATE,
        input_format=arguments.format,
        timeout=timeout,
    )
    model = classifier.load(
        arguments.checkpoint,
        pretrained=arguments.pretrained,
        step=arguments.step,
        weights=arguments.weights,
    )
    stream = Stream(model, arguments.every, stride=1)
    drops = source.live if arguments.drop is None else arguments.drop
    if drops:
        stream.compile()
    frames = feed.Feed(
        source,
        frame_arguments.chooser(arguments, model.config.data, stream.frames),
        2 * stream.frames,
        drops=drops,
        timeout=timeout if source.may_stall else None,
    )
    count = 0
    for answer in feed.answers(stream, frames):
        best = np.argsort(-answer.probabilities, kind="stable")[: arguments.topk]
        line = {
            "start": answer.start,
            "end": answer.end,
            "seconds": [round(seconds, 3) for seconds in answer.seconds],
            "predictions": [
                {"label": stream.labels[k], "probability": float(answer.probabilities[k])} for k in best
            ],
        }
        terminal.say(json.dumps(line | ({"dropped": frames.dropped} if drops else {})))
        count += 1
    if not count:
        raise UserError(f"{source.name} ended before the {stream.frames} frames that a window takes")


def _size(text: str) -> tuple[int, int]:
    """Read WxH; return the height and the width."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None or max(int(match[1]), int(match[2])) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height in pixels, such as 320x240")
    return int(match[2]), int(match[1])


def stream(*arguments: Any, **keywords: Any) -> "Stream":
    """Start a stream of a run's model: `engine.stream`."""
    from inti_jax.streaming import engine

    return engine.stream(*arguments, **keywords)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, stream)
