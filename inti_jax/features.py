"""Write features of video files: `python -m inti_jax.features --checkpoint RUN VIDEO... --out F.npz`."""

import argparse
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from inti_jax import cli
from inti_jax.cli import terminal
from inti_jax.errors import UsageError, UserError, naming
from inti_jax.evaluation import inputs
from inti_jax.host import archives, stores
from inti_jax.host.command import run_command
from inti_jax.host.paths import output_path

if TYPE_CHECKING:
    from inti_jax.hub.names import Place
    from inti_jax.runs.checkpoint import Step
    from inti_jax.runs.evaluations import Weights

log = logging.getLogger("inti_jax")

_HELP = """\
arrays of the file, for M videos, of D numbers a feature:
  videos    [M]         the given paths
  features  [M, D]      float32: input of the classifier's last layer, averaged over the evaluation's views
  missing   [L]         the paths of the videos without features
  reasons   [L]         the reason for each of them
with --frames, each video has several rows of features:
  features  [N, D]      float32: features before the average over time, clip by clip, averaged over the crops
  offsets   [M + 1]     the features of video i are features[offsets[i]:offsets[i + 1]]
  frames    [N, 2]      the first and the last frame of the video, from 0, that a feature was computed from:
                        a model that compresses groups of g frames n times has a feature for each g^n
                        frames of a clip

example: %(prog)s --checkpoint runs/mine my_videos --out features.npz
"""


def main(prog: str = "python -m inti_jax.features") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Writes the features of video files under a trained run to a NumPy archive, using the "
        "same sampling, decoding and views as its evaluation.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inputs.add_arguments(parser)
    parser.add_argument("--out", type=output_path, required=True, metavar="F.npz", help="file to write")
    parser.add_argument(
        "--frames", action="store_true", help="write the features of frames, before the average over time"
    )
    parser.add_argument(
        "--clips",
        type=int,
        metavar="N",
        help="clips sampled from each video (default: the run's `eval.clips`)",
    )
    arguments = parser.parse_args()
    if arguments.clips is not None and arguments.clips < 1:
        raise UsageError(f"--clips is {arguments.clips}: it should be at least 1")
    inputs.check_output(arguments.out, ".npz")
    cli.setup_logging()
    videos = inputs.collect(arguments)

    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax.runs import compilation

    compilation.cache_for_user()
    missing = write(
        arguments.out,
        arguments.checkpoint,
        videos,
        frames=arguments.frames,
        clips=arguments.clips,
        pretrained=arguments.pretrained,
        step=arguments.step,
        weights=arguments.weights,
    )
    total = len(videos.paths) + len(videos.left_out)
    log.info("%s: features of %d videos", arguments.out, total - missing)
    if missing:
        raise UserError(f"{missing} of {total} videos have no features: see `missing` in {arguments.out}")


def write(
    out: Path,
    checkpoint: "Place",
    videos: inputs.Videos,
    *,
    frames: bool = False,
    clips: int | None = None,
    pretrained: "Place | None" = None,
    step: "Step" = None,
    weights: "Weights | None" = None,
) -> int:
    """Write the features of `videos` to `out`, and return the number of videos without features.

    `--help` describes the file, which appears when it is complete. Features go through a temporary file
    beside it: they need not fit into memory.
    """
    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax.evaluation import inference
    from inti_jax.models.video import VideoModel

    output = VideoModel.frame_features if frames else VideoModel.features
    model = inference.FileModel(
        checkpoint, output, pretrained=pretrained, step=step, weights=weights, clips=clips
    )
    found: list[str] = []
    missing: list[tuple[Path, str]] = []
    offsets, spans = [0], [np.zeros((0, 2), np.int64)]
    with tempfile.TemporaryFile(dir=out.parent) as spool:
        with contextlib.closing(model(videos.paths, progress="features")) as outcomes:
            for outcome in outcomes:
                if outcome.values is None or outcome.info is None:
                    missing.append((outcome.path, outcome.error))
                    terminal.say(f"error: {outcome.path}: {outcome.error}", sys.stderr)
                    continue
                if frames:
                    rows = _by_frame(outcome.values, model.settings.clips)
                    spans.append(_spans(model.frames_of_views(outcome.info), len(rows)))
                else:
                    rows = outcome.values.mean(axis=0, keepdims=True)
                found.append(stores.shown(str(outcome.path)))
                offsets.append(offsets[-1] + len(rows))
                with naming(out):
                    spool.write(np.ascontiguousarray(rows, np.float32).tobytes())
        for path, reason in videos.left_out:
            terminal.say(f"error: {path}: {reason}", sys.stderr)
        missing += videos.left_out
        arrays = {
            "videos": _texts(found),
            "missing": _texts([stores.shown(str(path)) for path, _ in missing]),
            "reasons": _texts([reason for _, reason in missing]),
        }
        if frames:
            arrays |= {"offsets": np.asarray(offsets, np.int64), "frames": np.concatenate(spans)}
        with naming(out):
            spool.seek(0)
        _write_archive(out, arrays, spool, (offsets[-1], model.width))
    return len(missing)


def _by_frame(values: Float[np.ndarray, "V S D"], clips: int) -> Float[np.ndarray, "N D"]:
    """Average over the crops of each clip, and put the clips one below the other."""
    by_clip = values.reshape(clips, -1, *values.shape[1:]).mean(axis=1)
    return by_clip.reshape(-1, values.shape[-1])


def _spans(clips: Int64[np.ndarray, "clips T"], count: int) -> Int64[np.ndarray, "{count} 2"]:
    """Return the first and the last frame number of each of `count` equal parts of the clips."""
    parts = clips.reshape(count, -1)
    return np.stack([parts[:, 0], parts[:, -1]], axis=1)


def _texts(texts: Sequence[str]) -> np.ndarray:
    return np.asarray(texts, dtype=np.str_)


def _write_archive(
    path: Path, arrays: dict[str, np.ndarray], features: IO[bytes], shape: tuple[int, int]
) -> None:
    """Write a NumPy archive of `arrays` and of float32 `features` of shape `shape`.

    `features` are copied from their file. `np.savez` would need them in memory.
    """
    with archives.written(path) as archive:
        for name, array in arrays.items():
            archives.add(archive, name, array)
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            shutil.copyfileobj(features, member, 2**20)


if __name__ == "__main__":
    run_command(main)
