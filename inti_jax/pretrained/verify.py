"""Compare a converted file with its source, block by block, by running both implementations."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from inti_jax.distributed import backend
from inti_jax.errors import UserError
from inti_jax.pretrained import matching, sources
from inti_jax.pretrained.clip_file import ClipFile, build, content_hash
from inti_jax.pretrained.peers import others


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference at one output: its largest absolute value, and its norm over that of the source."""

    stage: str
    largest: float
    relative: float


def compare(path: Path, against: Path) -> list[Difference]:
    """Run the file by this project and its source by torch on the same two inputs; give the differences.

    Raises UserError where the file's weights are not those of its hash, where the source cannot be read,
    or where torch, or transformers for Hugging Face's naming, is not installed.
    """
    backend.start()
    file = ClipFile(path)
    if content_hash(file) != file.hash:
        raise UserError(
            f"{path} was changed after it was written, as the hash of its weights differs: convert the "
            "source again"
        )
    source = sources.read(against)
    others.refuse(source)
    matched = matching.match(against, source.arrays)
    architecture = file.description.architecture
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, *architecture.image.height_width, 3), np.float32)
    tokens = None
    if architecture.text is not None:
        text = architecture.text
        tokens = rng.integers(0, text.end_token or text.vocabulary, (2, text.context), np.int32)
        if text.end_token is not None:
            tokens[0, -1] = tokens[1, text.context // 2] = text.end_token
            tokens[1, text.context // 2 + 1 :] = 0
    try:
        from inti_jax.pretrained import reference

        theirs = reference.stages(source, matched, architecture, images, tokens)
    except ImportError:
        raise UserError(
            'verification needs torch and transformers: pip install "inti_jax[convert]"'
        ) from None
    except (RuntimeError, KeyError) as error:  # torch's errors for weights that do not fit
        reason = str(error).strip().splitlines()
        raise UserError(f"{against} does not fit {path}: {' '.join(reason[:2])}") from None
    ours = _stages(file, images, tokens)
    return [_difference(stage, ours[stage], theirs[stage]) for stage in ours]


def _stages(file: ClipFile, images: np.ndarray, tokens: np.ndarray | None) -> dict[str, np.ndarray]:
    architecture = file.description.architecture

    @jax.jit
    def run(
        params: dict[str, jax.Array], images: jax.Array, tokens: jax.Array | None
    ) -> dict[str, jax.Array]:
        model = build(architecture, params)
        found = {"image embedding": model.tower.embed(images)}
        x = found["image embedding"]
        for i, block in enumerate(model.tower.blocks, start=1):
            x = found[f"image block {i}"] = block(x)
        found["image feature"] = model.encode_image(images)
        if tokens is not None:
            x = found["text embedding"] = model.text.embed(tokens)
            for i, block in enumerate(model.text.blocks, start=1):
                x = found[f"text block {i}"] = block(x)
            found["text feature"] = model.encode_text(tokens)
        return found

    params = {name: array.read() for name, array in file.items()}
    # The coarser default products of a TPU or GPU would hide the differences in question.
    with jax.default_matmul_precision("highest"):
        found = run(params, images, tokens)
    # jit sorts a dict by its keys; this restores the order of the computation.
    order = sorted(found, key=_order)
    return {stage: np.asarray(found[stage]) for stage in order}


def _order(stage: str) -> tuple[str, int]:
    tower, _, rest = stage.partition(" ")
    if rest.startswith("block"):
        return tower, int(rest.split()[1])
    return tower, 0 if rest == "embedding" else 10**6


def _difference(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    if ours.shape != theirs.shape:
        raise UserError(f"{stage} is {list(ours.shape)} here and {list(theirs.shape)} in the source")
    gap = ours.astype(np.float64) - theirs
    return Difference(stage, float(np.abs(gap).max()), float(np.linalg.norm(gap) / np.linalg.norm(theirs)))
