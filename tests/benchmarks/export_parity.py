"""Compare each method with each compressor, exported, with the model that `inti_jax.load` gives.

    python -m tests.benchmarks.export_parity

Prints a row for each, with the largest difference as a share of the largest logit. The tests take a sixth of
the pairs.
"""

import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

from inti_jax.config.backbones import BACKBONES
from inti_jax.errors import UserError
from inti_jax.export import onnx_file, portable, stablehlo_file
from tests.configs import SHALLOW
from tests.export import examples, models


def main() -> None:
    """Print the rows."""
    targets = {"stablehlo": (stablehlo_file, "m.zip"), "onnx": (onnx_file, "m.onnx")}
    print(f"{'method':<12}{'compressor':<12}" + "".join(f"{target:>12}" for target in targets))
    video = models.videos()
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


if __name__ == "__main__":
    main()
