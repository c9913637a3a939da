"""The image tower against one in PyTorch, written from CLIP's description."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from inti_jax.config.backbones import BackboneSize
from inti_jax.models.block import quick_gelu
from inti_jax.models.rngs import make_rngs
from inti_jax.models.vit import ImageTower

SIZE = BackboneSize(width=128, layers=3, heads=2, patch=8, resolution=32)


class TorchTower(torch.nn.Module):
    """Takes its weights from our tower, so that a difference is one of computation."""

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tower = self.tower
        kernel = weight(tower.patch_embed.kernel).permute(3, 2, 0, 1)
        patches = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, stride=SIZE.patch)
        patches = patches.flatten(2).transpose(1, 2)
        first = weight(tower.class_embedding).expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + weight(tower.positional_embedding)
        x = layer_norm(x, tower.ln_pre)
        for block in tower.blocks:
            attention = torch.nn.MultiheadAttention(SIZE.width, SIZE.heads, batch_first=True)
            with torch.no_grad():
                qkv, out = block.attn.qkv, block.attn.out
                attention.in_proj_weight.copy_(weight(qkv.kernel).reshape(SIZE.width, -1).T)
                attention.in_proj_bias.copy_(weight(qkv.bias).reshape(-1))
                attention.out_proj.weight.copy_(weight(out.kernel).reshape(-1, SIZE.width).T)
                attention.out_proj.bias.copy_(weight(out.bias))
            y = layer_norm(x, block.ln_1)
            x = x + attention(y, y, y, need_weights=False)[0]
            hidden = layer_norm(x, block.ln_2) @ weight(block.mlp.fc.kernel) + weight(block.mlp.fc.bias)
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            x = x + hidden @ weight(block.mlp.proj.kernel) + weight(block.mlp.proj.bias)
        return layer_norm(x[:, 0], tower.ln_post)


def weight(parameter: nnx.Param) -> torch.Tensor:
    return torch.from_numpy(np.array(parameter[...]))


def layer_norm(x: torch.Tensor, norm: nnx.LayerNorm) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, (SIZE.width,), weight(norm.scale), weight(norm.bias))


def random_tower() -> ImageTower:
    """With every parameter random: at their start, biases are zero and hide mistakes."""
    tower = ImageTower(SIZE, rngs=make_rngs(0))
    rng = np.random.default_rng(0)
    for _, parameter in nnx.to_flat_state(nnx.state(tower, nnx.Param)):
        parameter[...] = parameter[...] + 0.1 * rng.standard_normal(parameter.shape, np.float32)
    return tower


def test_the_tower_equals_clips():
    tower = random_tower()
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3), np.float32)
    with torch.no_grad():
        expected = TorchTower(tower)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(tower(jnp.asarray(images)), expected, atol=2e-5 * np.linalg.norm(expected))


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, 0.845796), (-1.0, -0.154204)])
def test_quick_gelu_is_the_sigmoid_form(x, y):
    assert quick_gelu(jnp.asarray(x)) == pytest.approx(y, abs=1e-6)
