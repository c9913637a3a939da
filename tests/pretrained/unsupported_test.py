"""Backbones that are not supported are called what they are; their arrays have the published names."""

import json

import pytest
import safetensors.torch
import torch

from inti_jax.pretrained import converted
from tests.commands import convert
from tests.pretrained import checkpoints

TIMM_BLOCK = "blocks.0.norm1: blocks.0.attn.proj: blocks.0.norm2:"
TIMM_MLP = "blocks.0.mlp.fc1: blocks.0.mlp.fc2:"
EVA02 = (
    f"cls_token pos_embed patch_embed.proj: {TIMM_BLOCK} blocks.0.attn.q_proj: blocks.0.attn.k_proj.weight "
    "blocks.0.attn.v_proj: blocks.0.attn.norm: blocks.0.mlp.fc1_g: blocks.0.mlp.fc1_x: blocks.0.mlp.norm: "
    "blocks.0.mlp.fc2: norm: head:"
)
EVA = (
    f"cls_token pos_embed patch_embed.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.q_bias "
    "blocks.0.attn.v_bias blocks.0.attn.qkv.weight norm: head:"
)
POOL = "attn_pool.latent attn_pool.q: attn_pool.kv: attn_pool.proj: attn_pool.norm: attn_pool.mlp.fc1:"
OPENAI_BLOCK = (
    "transformer.resblocks.0.ln_1: transformer.resblocks.0.attn.in_proj_weight "
    "transformer.resblocks.0.attn.in_proj_bias transformer.resblocks.0.attn.out_proj: "
    "transformer.resblocks.0.ln_2: transformer.resblocks.0.mlp.c_fc: transformer.resblocks.0.mlp.c_proj:"
)
OPENAI_TOWER = f"conv1.weight class_embedding positional_embedding ln_pre: {OPENAI_BLOCK}"
HF_LAYER = (
    "encoder.layers.0.layer_norm1: encoder.layers.0.layer_norm2: encoder.layers.0.self_attn.q_proj: "
    "encoder.layers.0.self_attn.v_proj: encoder.layers.0.self_attn.out_proj: encoder.layers.0.mlp.fc1: "
    "encoder.layers.0.mlp.fc2:"
)
DINOV3_LAYER = (
    "layer.0.norm1: layer.0.attention.k_proj.weight layer.0.attention.v_proj: layer.0.attention.q_proj: "
    "layer.0.attention.o_proj: layer.0.layer_scale1.lambda1 layer.0.norm2: layer.0.mlp.up_proj: "
    "layer.0.mlp.down_proj: layer.0.layer_scale2.lambda1"
)

# By what the error says, pairs of a prefix and the names of the arrays below it. `x:` is a weight and a bias.
LAYOUTS = {
    "an EVA-02": [
        ("visual.trunk.", EVA02),  # open_clip
        ("", EVA02),  # timm
        ("timm_model.", EVA02),  # transformers
        (  # github.com/baaivision/EVA
            "visual.",
            f"cls_token pos_embed patch_embed.proj: rope.freqs_cos rope.freqs_sin {TIMM_BLOCK} "
            "blocks.0.attn.q_bias blocks.0.attn.v_bias blocks.0.attn.q_proj.weight "
            "blocks.0.attn.k_proj.weight blocks.0.attn.v_proj.weight blocks.0.attn.inner_attn_ln: "
            "blocks.0.mlp.w1: blocks.0.mlp.w2: "
            "blocks.0.mlp.ffn_ln: blocks.0.mlp.w3: norm: head:",
        ),
    ],
    "an EVA, ": [("visual.trunk.", EVA), ("", EVA), ("visual.", EVA)],
    "an EVA-CLIP": [  # huggingface.co/BAAI/EVA-CLIP-8B
        (
            "vision_model.",
            "embeddings.class_embedding embeddings.patch_embedding: embeddings.position_embedding.weight "
            f"{HF_LAYER} encoder.layers.0.self_attn.k_proj.weight post_layernorm:",
        )
    ],
    "BLIP": [
        (
            "vision_model.",
            "embeddings.class_embedding embeddings.patch_embedding: embeddings.position_embedding "
            "encoder.layers.0.self_attn.qkv: encoder.layers.0.self_attn.projection: "
            "encoder.layers.0.layer_norm1: encoder.layers.0.mlp.fc1: encoder.layers.0.mlp.fc2: "
            "encoder.layers.0.layer_norm2: post_layernorm:",
        )
    ],
    "a CoCa": [
        (
            "visual.",
            f"{OPENAI_TOWER} ln_post: proj attn_pool.query attn_pool.attn.q_proj_weight attn_pool.ln_q: "
            "attn_pool.attn.k_proj_weight attn_pool.attn.v_proj_weight attn_pool.attn.in_proj_bias "
            "attn_pool.attn.out_proj: attn_pool.ln_k:",
        )
    ],
    "a CLIP with a ResNet, such as OpenAI's RN50": [
        (
            "visual.",
            "conv1.weight bn1: bn1.running_mean conv2.weight conv3.weight layer1.0.conv1.weight "
            "layer1.0.bn1: layer1.0.downsample.0.weight layer4.0.conv1.weight attnpool.positional_embedding "
            "attnpool.k_proj: attnpool.q_proj: attnpool.v_proj: attnpool.c_proj:",
        )
    ],
    "a ResNet": [("", "conv1.weight bn1: layer1.0.conv1.weight layer1.0.bn1: layer4.0.conv1.weight fc:")],
    "a ConvNeXt": [
        (
            "visual.trunk.",
            "stem.0: stem.1: stages.0.blocks.0.gamma stages.0.blocks.0.conv_dw: stages.0.blocks.0.norm: "
            "stages.0.blocks.0.mlp.fc1: stages.0.blocks.0.mlp.fc2: stages.1.downsample.0: head.norm:",
        ),
        (
            "convnext.",
            "embeddings.patch_embeddings: embeddings.layernorm: encoder.stages.0.layers.0.dwconv: "
            "encoder.stages.0.layers.0.layer_scale_parameter encoder.stages.0.layers.0.layernorm: "
            "encoder.stages.0.layers.0.pwconv1: encoder.stages.0.layers.0.pwconv2: layernorm:",
        ),
        (  # DINOv3's
            "",
            "stages.0.downsample_layers.0: stages.0.layers.0.gamma stages.0.layers.0.depthwise_conv: "
            "stages.0.layers.0.layer_norm: stages.0.layers.0.pointwise_conv1: layer_norm:",
        ),
    ],
    "images of any shape (NaFlex)": [
        (
            "vision_model.",
            "embeddings.patch_embedding: embeddings.position_embedding.weight "
            f"{HF_LAYER} encoder.layers.0.self_attn.k_proj: post_layernorm: head.probe "
            "head.attention.in_proj_weight head.attention.in_proj_bias head.attention.out_proj: "
            "head.layernorm: head.mlp.fc1: head.mlp.fc2:",
        ),
        ("", f"embeds.pos_embed embeds.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: norm: {POOL}"),
    ],
    "a hybrid of a convolutional network": [
        (
            "",
            "cls_token pos_embed patch_embed.backbone.stem.conv.weight patch_embed.backbone.stem.norm: "
            "patch_embed.backbone.stages.0.blocks.0.conv1.weight patch_embed.proj: "
            f"{TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: norm: head:",
        ),
        (  # MobileCLIP-B
            "visual.trunk.",
            "cls_token pos_embed patch_embed.backbone.0.conv.weight patch_embed.backbone.0.bn: "
            f"patch_embed.backbone.2.conv: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: norm: head:",
        ),
        (  # ViTamin
            "visual.trunk.",
            "pos_embed patch_embed.backbone.stem.conv1: patch_embed.backbone.pool.proj: "
            f"{TIMM_BLOCK} blocks.0.attn.qkv: blocks.0.mlp.norm: blocks.0.mlp.w0: blocks.0.mlp.w1: "
            "blocks.0.mlp.w2: fc_norm:",
        ),
    ],
    "a Swin transformer": [
        (
            "visual.trunk.",
            "patch_embed.proj: patch_embed.norm: layers.0.blocks.0.norm1: layers.0.blocks.0.attn.qkv: "
            "layers.0.blocks.0.attn.relative_position_bias_table layers.0.blocks.0.mlp.fc1: norm:",
        )
    ],
    "a DINOv3": [
        (
            "",
            "embeddings.cls_token embeddings.mask_token embeddings.register_tokens "
            f"embeddings.patch_embeddings: {DINOV3_LAYER} norm:",
        ),
        (  # github.com/facebookresearch/dinov3, with SwiGLU as its largest
            "",
            "cls_token storage_tokens mask_token rope_embed.periods patch_embed.proj: blocks.0.norm1: "
            "blocks.0.attn.qkv: blocks.0.attn.qkv.bias_mask blocks.0.attn.proj: blocks.0.ls1.gamma "
            "blocks.0.norm2: blocks.0.mlp.w1: blocks.0.mlp.w2: blocks.0.mlp.w3: blocks.0.ls2.gamma norm:",
        ),
        (
            "",
            f"cls_token reg_token patch_embed.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.gamma_1 "
            "blocks.0.gamma_2 blocks.0.attn.qkv.weight norm:",
        ),
    ],
    "a Perception Encoder, with": [
        (  # github.com/facebookresearch/perception_models
            "visual.",
            f"{OPENAI_TOWER} ln_post: proj attn_pool.probe attn_pool.attn.in_proj_weight "
            "attn_pool.attn.in_proj_bias attn_pool.attn.out_proj: attn_pool.layernorm: attn_pool.mlp.c_fc: "
            "attn_pool.mlp.c_proj:",
        ),
        (
            "visual.trunk.",
            f"cls_token pos_embed patch_embed.proj.weight norm_pre: {TIMM_BLOCK} {TIMM_MLP} "
            f"blocks.0.attn.qkv: norm: {POOL} head:",
        ),
        (  # that of its language model
            "",
            f"cls_token pos_embed patch_embed.proj.weight norm_pre: {TIMM_BLOCK} {TIMM_MLP} "
            "blocks.0.attn.qkv: blocks.0.gamma_1 blocks.0.gamma_2",
        ),
    ],
    "such as a Perception Encoder": [
        ("", f"{OPENAI_TOWER} transformer.resblocks.0.ls_1.gamma transformer.resblocks.0.ls_2.gamma")
    ],
    "an AIMv2": [
        (
            "vision_model.",
            "embeddings.patch_embed: embeddings.rms_norm.weight embeddings.position_embedding.weight "
            "encoder.layers.0.attention.q_proj.weight encoder.layers.0.ffn.gate_proj.weight "
            "encoder.layers.0.ffn.up_proj.weight encoder.layers.0.rms_norm1.weight rms_norm.weight "
            "head.cls_token head.k_proj.weight",
        ),
        (
            "",
            "preprocessor.patchifier.proj: preprocessor.patchifier.norm.weight preprocessor.pos_embed "
            "trunk.blocks.0.norm_1.weight trunk.blocks.0.attn.qkv.weight trunk.blocks.0.mlp.fc1.weight "
            "trunk.blocks.0.mlp.fc3.weight trunk.post_trunk_norm.weight",
        ),
        (
            "",
            "pos_embed patch_embed.proj: patch_embed.norm.weight blocks.0.norm1.weight "
            "blocks.0.attn.qkv.weight blocks.0.mlp.fc1_g.weight blocks.0.mlp.fc1_x.weight norm.weight",
        ),
    ],
    "an InternViT": [
        (
            "vision_model.",
            "embeddings.class_embedding embeddings.patch_embedding: embeddings.position_embedding "
            "encoder.layers.0.attn.qkv.weight encoder.layers.0.attn.proj: encoder.layers.0.norm1: "
            "encoder.layers.0.ls1 encoder.layers.0.ls2 encoder.layers.0.mlp.fc1:",
        ),
        (
            "vision_tower.",
            "embeddings.cls_token embeddings.position_embeddings embeddings.patch_embeddings.projection: "
            "encoder.layer.0.lambda_1 encoder.layer.0.lambda_2 encoder.layer.0.attention.q_proj.weight "
            "encoder.layer.0.attention.projection_layer: encoder.layer.0.layernorm_before:",
        ),
    ],
    "one of timm's models, and neither a SigLIP": [
        (
            "",
            f"cls_token pos_embed patch_embed.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: norm: head:",
        ),
        (  # a DeiT III
            "",
            f"cls_token pos_embed patch_embed.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: "
            "blocks.0.ls1.gamma blocks.0.ls2.gamma norm: head:",
        ),
        (  # a SigLIP with the mean of its patches
            "visual.trunk.",
            f"pos_embed patch_embed.proj: {TIMM_BLOCK} {TIMM_MLP} blocks.0.attn.qkv: norm:",
        ),
    ],
    "but one of timm's models": [("visual.trunk.", "stem.0.conv_kxk.0.conv.weight final_conv.se.fc1:")],
}
CASES = [(said, *layout) for said, layouts in LAYOUTS.items() for layout in layouts]


def arrays(prefix, names):
    """Tiny arrays of these names; those that embed pixels have four dimensions."""
    found = {}
    for name in names.split():
        for ending in ("weight", "bias") if name.endswith(":") else ("",):
            whole = f"{prefix}{name.rstrip(':')}{ending and '.'}{ending}"
            embeds = any(part in whole for part in ("conv", "patch_embed", "patchifier", "stem"))
            shape = (2,) if ending == "bias" else (4, 3, 2, 2) if embeds else (4, 4)
            found[whole] = torch.zeros(shape)
    return found


@pytest.mark.parametrize(("said", "prefix", "names"), CASES)
def test_it_is_called_what_it_is(tmp_path, capsys, said, prefix, names):
    weights = arrays(prefix, names)
    if "NaFlex" in said and prefix:  # flat patches in a linear layer
        weights["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(4, 12)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    for path in (tmp_path / "model.safetensors", tmp_path):
        assert convert(path, "--out", tmp_path / "f.safetensors") == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line and "convert takes the ViTs of CLIP (" in line
    assert not (tmp_path / "f.safetensors").exists()


def test_it_is_said_where_weights_are_converted_on_the_fly(tmp_path):
    path = tmp_path / "eva.safetensors"
    safetensors.torch.save_file(arrays("visual.", EVA), path)
    with pytest.raises(converted.UserError, match="is an EVA, which is not supported"):
        converted.open_converted(path)


def test_openais_archive_of_a_resnet_is_named(tmp_path, capsys):
    ((_, prefix, names),) = [case for case in CASES if "RN50" in case[0]]
    checkpoints.write_torchscript(tmp_path / "RN50.pt", arrays(prefix, names), resolution=224)
    assert convert(tmp_path / "RN50.pt", "--out", tmp_path / "f.safetensors") == 1
    assert "is a CLIP with a ResNet, such as OpenAI's RN50" in capsys.readouterr().err
