"""CLIP checkpoints with random weights, in every form that people have them in."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

from inti_jax.pretrained.encoders import ClipModel

# (image width, heads, patch, text width, text heads, feature width) of CLIP's own models.
SIZES = {
    "b32": (768, 12, 32, 512, 8, 512),
    "b16": (768, 12, 16, 512, 8, 512),
    "l14": (1024, 16, 14, 768, 12, 768),
    "h14": (1280, 16, 14, 1024, 16, 1024),  # open_clip's: heads 80 wide
    "small": (128, 2, 16, 64, 1, 32),
    "tiny": (96, 4, 8, 64, 1, 32),  # the project's own; 4 layers, 32 pixels
}

_MERGES = [
    "t h",
    "th e</w>",
    "a n",
    "an d</w>",
    "d o",
    "do g</w>",
    "p h",
    "ph o",
    "pho t",
    "phot o</w>",
    "o f</w>",
]


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Ids and merges, in the order of CLIP's own: bytes, bytes that end a word, merges, start and end."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in seen] + [chr(256 + n) for n in range(256 - len(seen))]
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in _MERGES),
    ]
    tokens = [*words, "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, _MERGES


def huggingface_model(
    size: str = "small",
    *,
    activation: str = "quick_gelu",
    layers: int = 2,
    resolution: int = 224,
    mlp: int | None = None,
    text_mlp: int | None = None,
) -> transformers.CLIPModel:
    """transformers' CLIP with every weight and bias random, none of them at its neutral value.

    `mlp` is the image tower's width inside the MLP, `text_mlp` the text tower's.
    """
    width, heads, patch, text_width, text_heads, embed = SIZES[size]
    tokens = len(vocabulary()[0])
    common = {"num_hidden_layers": layers, "hidden_act": activation, "projection_dim": embed}
    config = transformers.CLIPConfig(
        projection_dim=embed,
        vision_config={
            "hidden_size": width,
            "intermediate_size": mlp or 4 * width,
            "num_attention_heads": heads,
            "patch_size": patch,
            "image_size": resolution,
            **common,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": text_mlp or 4 * text_width,
            "num_attention_heads": text_heads,
            "vocab_size": tokens,
            "bos_token_id": tokens - 2,
            "eos_token_id": tokens - 1,
            "pad_token_id": tokens - 1,
            **common,
        },
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 and "embedding" not in name else 25
                parameter.copy_(noise * fan_in**-0.5)
    return model


def write_huggingface(directory: Path, model: transformers.CLIPModel, *, form: str = "safetensors") -> Path:
    """A directory as the hub has it. `form`: safetensors, shards or bin."""
    directory.mkdir()
    if form == "bin":
        model.config.save_pretrained(directory)
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    else:
        model.save_pretrained(directory, max_shard_size="100KB" if form == "shards" else "50GB")
    ids, merges = vocabulary()
    (directory / "vocab.json").write_text(json.dumps(ids))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return directory


def openai_state_dict(model: transformers.CLIPModel) -> dict[str, torch.Tensor]:
    """The same weights under OpenAI's names, written out by hand."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    result = {
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        "logit_scale": weights["logit_scale"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    same = dict(norms)
    for tower, name in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for i in range(model.config.vision_config.num_hidden_layers):
            here, there = f"{name}.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                parts = [weights[f"{there}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                result[f"{here}.attn.in_proj_{kind}"] = torch.cat(parts)
            same |= {
                f"{here}.attn.out_proj": f"{there}.self_attn.out_proj",
                f"{here}.ln_1": f"{there}.layer_norm1",
                f"{here}.ln_2": f"{there}.layer_norm2",
                f"{here}.mlp.c_fc": f"{there}.mlp.fc1",
                f"{here}.mlp.c_proj": f"{there}.mlp.fc2",
            }
    for here, there in same.items():
        for kind in ("weight", "bias"):
            result[f"{here}.{kind}"] = weights[f"{there}.{kind}"]
    return result


class _Module(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(path: Path, weights: dict[str, torch.Tensor], *, resolution: int) -> None:
    """A TorchScript archive in half precision with these parameters, as OpenAI publishes its models."""
    root = _Module()
    for name, value in weights.items():
        *modules, leaf = name.split(".")
        module = root
        for part in modules:
            if not hasattr(module, part):
                module.add_module(part, _Module())
            module = getattr(module, part)
        module.register_parameter(leaf, nn.Parameter(value.clone()))
    for name, number in (("input_resolution", resolution), ("context_length", 77), ("vocab_size", 525)):
        root.register_buffer(name, torch.tensor(number))
    root.half()
    torch.jit.save(torch.jit.script(root), path)


def inputs(model: transformers.CLIPModel, *, batch: int = 2) -> tuple[np.ndarray, list[str]]:
    """Normalised images [B, H, W, 3] and as many texts."""
    side = model.config.vision_config.image_size
    images = np.random.default_rng(1).standard_normal((batch, side, side, 3)).astype(np.float32)
    return images, ["a photo of the dog", "The  dog, and 12 PHOTOS of Ünïcode — !"][:batch]


def tokenize(texts: list[str]) -> transformers.BatchEncoding:
    """transformers' tokens [B, 77]."""
    ids, merges = vocabulary()
    tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=[tuple(merge.split()) for merge in merges])
    return tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")


def features(
    model: transformers.CLIPModel, images: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """transformers' features of images and of texts, and its logits [B images, B texts]."""
    tokens = tokenize(texts)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        text = model.text_projection(model.text_model(input_ids=tokens["input_ids"]).pooler_output)
        logits = model(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image
    return image.numpy(), text.numpy(), logits.numpy()


def logits(clip: ClipModel, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Zero-shot logits [B images, B texts] of our CLIP, for texts' features."""
    features = clip.encode_image(images)
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return clip.logit_scale * features @ (texts / np.linalg.norm(texts, axis=-1, keepdims=True)).T
