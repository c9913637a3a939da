"""Labels for video files: `python -m inti_jax.predict --checkpoint DIR VIDEO...`."""

import argparse
import dataclasses
import functools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.errors import UsageError, UserError, run_command
from inti_jax.paths import local_path

if TYPE_CHECKING:
    from inti_jax.checkpoint import Step

log = logging.getLogger("inti_jax")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m inti_jax.predict",
        description="Labels video files with a trained run, by the same sampling, decoding and views as its "
        "evaluation.",
    )
    parser.add_argument("videos", nargs="+", type=local_path, metavar="VIDEO", help="video files")
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=local_path,
        metavar="DIR",
        help="the run's directory, or a file that `convert --to trained` wrote",
    )
    parser.add_argument(
        "--pretrained",
        type=local_path,
        metavar="F",
        help="the converted CLIP that such a file goes on (default: where the run found it)",
    )
    cli.add_step_argument(parser)
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="labels a video (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with an entry for each video")
    arguments = parser.parse_args()
    if arguments.topk < 1:
        raise UsageError(f"--topk is {arguments.topk}: it should be at least 1")
    cli.setup_logging()

    results = predict_files(
        arguments.checkpoint, arguments.videos, arguments.topk, arguments.pretrained, arguments.step
    )
    failed = [result for result in results if "error" in result]
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            if "error" in result:
                continue
            print(result["video"])
            for entry in result["predictions"]:
                print(f"  {entry['probability']:.3f}  {entry['label']}")
    for result in failed:
        print(f"error: {result['video']}: {result['error']}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(results)} videos could not be labelled")


def predict_files(
    checkpoint: Path,
    paths: list[Path],
    topk: int,
    pretrained: Path | None = None,
    step: "Step" = None,
) -> list[dict[str, Any]]:
    """For each path `{video, predictions: [{label, probability}]}`, best first, or `{video, error}`."""
    # Imported late: --help and a wrong argument should not wait for JAX.
    import numpy as np

    from inti_jax import evaluate, sharding, trained
    from inti_jax.data import pipeline, sampling
    from inti_jax.data.dataset import FileDataset
    from inti_jax.data.decode import DecodeError

    mesh = sharding.one_device_mesh()
    found = trained.load(checkpoint, mesh, pretrained=pretrained, step=step)
    record, labels = found.record, found.record.dataset.labels
    graphdef, params = found.for_inference()
    settings = dataclasses.replace(record.config.eval, batch=min(record.config.eval.batch, len(paths)))
    # In threads, not processes: `source.found` is filled in this one.
    data = dataclasses.replace(record.config.data, workers=0)
    source = FileDataset(paths, functools.partial(pipeline.view_indices, cfg=data, eval_cfg=settings))
    rows = evaluate.predict(evaluate.make_forward(graphdef, mesh), params, source, data, settings, mesh)
    results: list[dict[str, Any]] = [{"video": str(path)} for path in paths]
    needed = sampling.span(data.num_frames, data.sampling, data.stride)
    for index, file in sorted(source.found.items()):
        if isinstance(file, DecodeError):
            results[index]["error"] = str(file)
        elif file.frames < needed:
            log.warning(
                "%s has %d of the %d frames that a clip spans: some are repeated or closer together",
                paths[index],
                file.frames,
                needed,
            )
    for index, probabilities in zip(rows.index, rows.probabilities, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:topk]
        results[index]["predictions"] = [
            {"label": labels[k], "probability": float(probabilities[k])} for k in best
        ]
    return results


if __name__ == "__main__":
    run_command(main)
