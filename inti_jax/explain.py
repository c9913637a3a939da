"""Show where answers come from: `python -m inti_jax.explain --checkpoint RUN VIDEO... --out F.html`.

In Python, `inti_jax.explain(RUN, video)` returns the arrays behind the page; see evaluation/explanation.py.
"""

import argparse
import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.cli import terminal
from inti_jax.cli.callable_module import make_callable
from inti_jax.errors import UserError
from inti_jax.evaluation import inputs
from inti_jax.host.command import run_command
from inti_jax.host.paths import output_path

if TYPE_CHECKING:
    from inti_jax.evaluation.explanation import Explanation

log = logging.getLogger("inti_jax")


def main(prog: str = "python -m inti_jax.explain") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Shows which frames and patches the answers of a trained run come from, as a page: the "
        "weights of each layer that blends frames, their product through all layers, attention rollout, and "
        "the effect of taking each frame away as a check. It explains the middle one of the views that the "
        "run's evaluation takes of a video.",
        epilog="example: %(prog)s --checkpoint runs/mine my_videos/*.mp4 --out explained.html",
    )
    inputs.add_arguments(parser)
    parser.add_argument("--out", required=True, type=output_path, metavar="F.html", help="page to write")
    parser.add_argument(
        "--animation",
        type=output_path,
        metavar="F.gif|F.mp4",
        help="also write the frames beside their heat maps as an animation, one video after the other",
    )
    arguments = parser.parse_args()
    inputs.check_output(arguments.out, ".html")
    if arguments.animation is not None:
        inputs.check_output(arguments.animation, ".gif", ".mp4", argument="--animation")
    cli.setup_logging()
    videos = inputs.collect(arguments)

    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax.evaluation import classifier
    from inti_jax.evaluation.explanation import Explainer
    from inti_jax.reports import animation
    from inti_jax.reports.explanation_page import Page
    from inti_jax.runs import compilation
    from inti_jax.runs.writers.progress import Progress

    compilation.cache_for_user()
    model = classifier.load(
        arguments.checkpoint,
        pretrained=arguments.pretrained,
        step=arguments.step,
        weights=arguments.weights,
    )
    explainer, page = Explainer(model), Page(arguments.checkpoint, model.record)
    pictures, failed = [], [(path, f"{path}: {reason}") for path, reason in videos.left_out]
    with contextlib.closing(Progress("explain", len(videos.paths))) as progress:
        for path in videos.paths:
            try:
                found = explainer(path)
            except UserError as error:
                failed.append((path, str(error)))
                terminal.say(f"error: {error}", sys.stderr)
            else:
                page.add(path, found)
                if arguments.animation is not None:
                    pictures.append(animation.beside(found))
            progress.advance()
    for path, reason in failed:
        page.add_failed(path, reason)
    page.write(arguments.out)
    total = len(videos.paths) + len(videos.left_out)
    log.info("%s: %d of %d videos explained", arguments.out, total - len(failed), total)
    if pictures:
        animation.write(arguments.animation, pictures)
        log.info("%s: %d frames", arguments.animation, sum(map(len, pictures)))
    if failed:
        raise UserError(f"{len(failed)} of {total} videos could not be explained")


def explain(*arguments: Any, **keywords: Any) -> "Explanation":
    """Explain the answer of a run's model on one video: `explanation.explain`."""
    from inti_jax.evaluation import explanation

    return explanation.explain(*arguments, **keywords)


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__, explain)
