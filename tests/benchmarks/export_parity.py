"""Compare each method with each compressor, exported, with the model that `inti_jax.load` gives.

    python -m tests.benchmarks.export_parity [--clips 200]

Half of the clips are of videos of motion_digits, the others are noise. Prints a row for each pair, with the
largest difference as a share of the largest logit. The tests take a sixth of the pairs, and two clips.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from inti_jax.config.backbones import BACKBONES
from inti_jax.data.builders.motion_digits import MotionDigits
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UserError
from inti_jax.export import onnx_file, portable, stablehlo_file
from tests.configs import SHALLOW
from tests.export import examples, models


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    clips = parser.parse_args().clips
    targets = {"stablehlo": (stablehlo_file, "m.zip"), "onnx": (onnx_file, "m.onnx")}
    print(f"{'method':<12}{'compressor':<12}" + "".join(f"{target:>12}" for target in targets))
    video = np.concatenate([_digits(clips // 2), models.videos(batch=clips - clips // 2)])
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(BACKBONES, tiny=dataclasses.replace(SHALLOW)):
        for method in models.METHODS:
            for compression in models.COMPRESSIONS:
                found = models.trained(method, compression)
                expected = models.classifier(found)(video)
                cells = []
                for target, (writer, file) in targets.items():
                    try:
                        writer.write(Path(name) / file, portable.of_trained(found))
                        run, _ = examples.module(f"run_{target}.py").load(Path(name) / file)
                        cells.append(f"{models.relative(run(video), expected):.1e}")
                    except UserError as error:
                        cells.append(str(error))
                print(f"{method:<12}{compression:<12}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def _digits(count: int) -> np.ndarray:
    """Decode the first four frames of `count` videos of motion_digits, at half of their size."""
    with tempfile.TemporaryDirectory() as name:
        MotionDigits(data_dir=Path(name), movements={"train": count // 2, "val": 1}).build()
        dataset = open_dataset("motion_digits", name, "train")
        return np.stack([dataset[index].frames_at(np.arange(4))[:, ::2, ::2] for index in range(count)])


if __name__ == "__main__":
    main()
