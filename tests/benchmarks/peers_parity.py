"""Compare the logits of converted AIM, ST-Adapter and ZeroI2V, of the published sizes, with the references.

    python -m tests.benchmarks.peers_parity

Each checkpoint is written as the method's own code does, with random values, and converted; the references
compute in float64.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import inti_jax
from inti_jax.config.backbones import BACKBONES, CLIP_MEAN, CLIP_STD
from tests.commands import convert
from tests.models import torch_references as references
from tests.pretrained import peers

FRAMES, CLASSES = 8, 400
_B16 = ((-1, 1), (1, 1), (-2, 1), (2, 1))
_L14 = ((-1, 2), (1, 2))
# The backbone, what a user gives, and the same settings for the reference.
ROWS: list[tuple[str, str, tuple[str, ...], Any, dict[str, Any]]] = [
    ("aim", "clip_vit_b16", ("--scale", "0.5"), references.aim, {"scale": 0.5, "temporal_adapters": 1}),
    ("aim_2", "clip_vit_b16", ("--scale", "1"), references.aim, {"scale": 1.0, "temporal_adapters": 2}),
    (
        "zero_i2v",
        "clip_vit_b16",
        ("--scale", "1", "--shifts", str(_B16)),
        references.zero_i2v,
        {"scale": 1.0, "shifts": _B16},
    ),
    (
        "zero_i2v",
        "clip_vit_l14",
        ("--scale", "0.5", "--shifts", str(_L14)),
        references.zero_i2v,
        {"scale": 0.5, "shifts": _L14},
    ),
    ("st_mlp", "clip_vit_b16", ("--frames", str(FRAMES)), references.st_adapter, {"before": ("mlp",)}),
    (
        "st_both",
        "clip_vit_b16",
        ("--frames", str(FRAMES)),
        references.st_adapter,
        {"before": ("attn", "mlp")},
    ),
]


def main() -> None:
    """Print a row for each checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        labels = directory / "labels.txt"
        labels.write_text("\n".join(f"class {k}" for k in range(CLASSES)))
        rows = [_row(directory, labels, *row) for row in ROWS]
    print("\n".join(rows))


def _row(
    directory: Path,
    labels: Path,
    kind: str,
    backbone: str,
    given: tuple[str, ...],
    reference: Any,
    settings: Any,
) -> str:
    size, st_adapter = BACKBONES[backbone], kind.startswith("st")
    sizes = {"size": size, "frames": FRAMES, "classes": CLASSES}
    weights = peers.tensors(kind, inner=384 if st_adapter else size.width // 4, **sizes)
    source = peers.write(directory / "m.pth", kind, weights)
    params = peers.reference(kind, weights, size)
    mean, std = peers.MEAN, peers.STD
    if st_adapter:
        mean, std = np.array(CLIP_MEAN), np.array(CLIP_STD)
        tower = peers.clip_tensors(**sizes)
        torch.save(tower, directory / "clip.pt")
        clip = directory / "clip.safetensors"
        assert convert(directory / "clip.pt", "--out", clip, "--activation", "quick_gelu") == 0
        given = (*given, "--pretrained", str(clip))
        params |= peers.reference("aim", {name.removeprefix("visual."): w for name, w in tower.items()}, size)
    out = directory / "m.safetensors"
    assert convert(source, "--out", out, "--labels", labels, "--sampling", "dense:16", *given) == 0
    video = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 224, 224, 3), np.uint8)
    found = inti_jax.load(out)(video)
    with torch.no_grad():
        frames = torch.from_numpy((video / 255 - mean) / std)
        expected = references.linear(reference(params, frames, **settings), params, "head").numpy()
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    return f"{kind:<10}{backbone:<14}{len(weights):>5} tensors, logits differ by {gap:.1e} of the largest"


if __name__ == "__main__":
    main()
