"""Compare features of converted backbones, of the published sizes, with those of transformers.

    python -m tests.benchmarks.backbone_parity

Each model has random values, none at its neutral value, and is written as a Hugging Face directory. Both
sides compute in float32.
"""

import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import inti_jax
from tests.commands import convert

_SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
# The name of a row, transformers' model and its settings.
ROWS: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "CLIP ViT-H/14, 224",
        transformers.CLIPVisionModel,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
            "hidden_act": "gelu",
        },
    ),
    ("SigLIP ViT-B/16, 224", transformers.SiglipVisionModel, {}),
    (
        "SigLIP so400m/14, 384",
        transformers.SiglipVisionModel,
        {**_SIGLIP, "patch_size": 14, "image_size": 384},
    ),
]


def main() -> None:
    """Print a row for each model."""
    transformers.logging.set_verbosity_error()
    for name, kind, settings in ROWS:
        with tempfile.TemporaryDirectory() as directory:
            print(_row(Path(directory), name, kind, settings), flush=True)


def _row(directory: Path, name: str, kind: Any, settings: dict[str, Any]) -> str:
    model = kind(kind.config_class(**settings)).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in path:
                parameter.copy_(0.2 * noise + (0 if path.endswith("bias") else 1))
            else:
                matrix = path.endswith("weight") and "position" not in path
                parameter.copy_(noise * (parameter[0].numel() if matrix else 25) ** -0.5)
    model.save_pretrained(directory / "hf")
    side = model.config.image_size
    images = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = model(pixel_values=pixels).pooler_output.numpy()
    count = sum(parameter.numel() for parameter in model.parameters())
    del model
    if convert(directory / "hf", "--out", directory / "f.safetensors"):
        raise SystemExit(f"{name} was not converted")
    found = inti_jax.load_tower(directory / "f.safetensors").features(images)
    gaps = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return f"| {name} | {count / 1e6:.0f} M | {gaps.max():.1e} |"


if __name__ == "__main__":
    main()
