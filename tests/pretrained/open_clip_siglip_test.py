"""SigLIP in open_clip's and timm's names gives, bit for bit, what it gives in transformers' names."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained.siglip_test import byte_pairs, make

TEXT_LAYER = r"text_model\.encoder\.layers\.(\d+)\."
# Names of transformers, and open_clip's for them, with timm's image tower.
NAMES = (
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.trunk.pos_embed"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual.trunk.blocks.\1.norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"visual.trunk.blocks.\1.attn.proj."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual.trunk.blocks.\1.mlp."),
    (r"vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"vision_model\.head\.probe", "visual.trunk.attn_pool.latent"),
    (r"vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    (r"text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (rf"{TEXT_LAYER}layer_norm", r"text.transformer.resblocks.\1.ln_"),
    (rf"{TEXT_LAYER}self_attn\.out_proj\.", r"text.transformer.resblocks.\1.attn.out_proj."),
    (rf"{TEXT_LAYER}mlp\.fc1\.", r"text.transformer.resblocks.\1.mlp.c_fc."),
    (rf"{TEXT_LAYER}mlp\.fc2\.", r"text.transformer.resblocks.\1.mlp.c_proj."),
    (r"text_model\.final_layer_norm\.", "text.ln_final."),
    (r"text_model\.head\.", "text.text_projection."),
    (r"logit_", "logit_"),
)  # fmt: skip
CONFIG = {
    "model_cfg": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 58,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 300,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 2.34375,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def open_clips(weights):
    """The weights of transformers' SigLIP in open_clip's names and layouts."""
    found = {}
    for name, value in weights.items():
        if ".self_attn." in name and ".out_proj." not in name:
            stem, _, rest = name.partition(".self_attn.")
            kind = rest.partition(".")[2]
            if not rest.startswith("q_proj"):
                continue
            packed = torch.cat([weights[f"{stem}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
            block = stem.rpartition(".")[2]
            if stem.startswith("vision"):
                found[f"visual.trunk.blocks.{block}.attn.qkv.{kind}"] = packed
            else:
                found[f"text.transformer.resblocks.{block}.attn.in_proj_{kind}"] = packed
        elif ".head.attention.in_proj_" in name:
            kind = name.rpartition("_")[2]
            found[f"visual.trunk.attn_pool.q.{kind}"] = value[:96].clone()
            found[f"visual.trunk.attn_pool.kv.{kind}"] = value[96:].clone()
        else:
            ((theirs, ours),) = [(theirs, ours) for theirs, ours in NAMES if re.match(theirs, name)]
            value = (
                value[None] if name.endswith("vision_model.embeddings.position_embedding.weight") else value
            )
            value = value.reshape(()) if name.startswith("logit_") else value
            found[re.sub(theirs, ours, name)] = value.clone()
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory as open_clip's on the hub, and the file that transformers' directory gives."""
    directory = tmp_path_factory.mktemp("siglip")
    model = make("whole")
    model.save_pretrained(directory / "hf")
    byte_pairs().save(str(directory / "hf" / "tokenizer.json"))
    assert convert(directory / "hf", "--out", directory / "hf.safetensors") == 0
    (directory / "open_clip").mkdir()
    weights = open_clips(model.state_dict())
    safetensors.torch.save_file(weights, directory / "open_clip" / "open_clip_model.safetensors")
    byte_pairs().save(str(directory / "open_clip" / "tokenizer.json"))
    (directory / "open_clip" / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return directory


def assert_same(found, expected, names):
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_array_equal(found.read(name), expected.read(name), err_msg=name)


def test_a_whole_model_is_that_of_transformers(files, tmp_path, capsys):
    out = tmp_path / "f.safetensors"
    source = files / "open_clip"
    assert convert(source, "--out", out, "--head_size", "32") == 0
    assert "open_clip's siglip naming" in capsys.readouterr().out
    found, expected = ClipFile(out), ClipFile(files / "hf.safetensors")
    assert found.description == expected.description and found.hash == expected.hash
    assert_same(found, expected, expected)
    assert convert("--verify", out, "--against", source) == 0
    assert "text feature" in capsys.readouterr().out
    # Where a weight differs, the comparison finds it.
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "open_clip_config.json").write_text(json.dumps(CONFIG))
    weights = safetensors.torch.load_file(source / "open_clip_model.safetensors")
    weights["visual.trunk.attn_pool.kv.weight"][96:] *= 1.1  # the values
    safetensors.torch.save_file(weights, changed / "open_clip_model.safetensors")
    assert convert("--verify", out, "--against", changed) == 1
    assert "first at stage image feature" in capsys.readouterr().err


def test_timms_image_tower_by_itself(files, tmp_path):
    weights = safetensors.torch.load_file(files / "open_clip" / "open_clip_model.safetensors")
    tower = {name.removeprefix("visual.trunk."): value for name, value in weights.items() if "trunk" in name}
    torch.save(tower, tmp_path / "m.pt")
    out = tmp_path / "f.safetensors"
    assert convert(tmp_path / "m.pt", "--out", out, "--head_size", "32") == 0
    found, expected = ClipFile(out), ClipFile(files / "hf.safetensors")
    assert_same(found, expected, [name for name in expected if name.startswith("tower.")])
    image = found.description.architecture.image
    assert image.resolution == 56 and image.alike(expected.description.architecture.image)
    assert found.description.mean == expected.description.mean


@pytest.mark.parametrize(
    ("change", "arguments", "line"),
    [
        (lambda text: text.pop("no_causal_mask"), (), "text_cfg.no_causal_mask None, and SigLIP's is True"),
        (lambda text: text.update(norm_kwargs={}), (), "text_cfg.norm_kwargs.eps None"),
        (lambda text: None, ("--activation", "gelu"), "leave out --activation"),
        (lambda text: None, ("--head_size", "36"), "--head_size should be one of 1, 2, 3, 4, 6, 8, 12"),
        (lambda text: None, (), "attention heads of width 64 do not divide the image tower's width 96"),
    ],
)  # fmt: skip
def test_what_is_not_siglips_is_refused(files, tmp_path, capsys, change, arguments, line):
    config = json.loads(json.dumps(CONFIG))
    change(config["model_cfg"]["text_cfg"])
    weights = (files / "open_clip" / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert convert(tmp_path, "--out", tmp_path / "f.safetensors", *arguments) != 0
    assert line in capsys.readouterr().err
