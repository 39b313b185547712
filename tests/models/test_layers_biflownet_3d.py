import torch
import torch.nn.functional as F

from voxdiff.models.layers_biflownet_3d import BiFlowResnetBlock3D, BiFlowUpBlock3D, SpatialAttention3D


@torch.no_grad()
def test_the_embedding_scales_first_and_then_shifts():
    block = BiFlowResnetBlock3D(4, 6, 5, groups=2)
    sample, temb = torch.randn(2, 4, 3, 4, 5), torch.randn(2, 5)
    vectors = F.linear(temb, block.time_emb_proj.weight, block.time_emb_proj.bias)
    scale, shift = (half.reshape(2, 6, 1, 1, 1) for half in (vectors[:, :6], vectors[:, 6:]))
    inner = F.silu(F.group_norm(block.conv1(sample), 2) * (1 + scale) + shift)
    expected = F.silu(F.group_norm(block.conv2(inner), 2)) + block.conv_shortcut(sample)
    torch.testing.assert_close(block(sample, temb), expected)


@torch.no_grad()
def test_attention_is_a_softmax_over_all_voxels():
    attention = SpatialAttention3D(6, num_heads=2, head_dim=4)
    torch.nn.init.normal_(attention.norm.weight)
    sample = 3 * torch.randn(2, 6, 2, 3, 4)
    mean, variance = sample.mean(1, keepdim=True), sample.var(1, keepdim=True, correction=0)
    tokens = ((sample - mean) / (variance + 1e-5).sqrt()).flatten(2).mT * attention.norm.weight
    query, key, value = (
        F.linear(tokens, layer.weight).reshape(2, 24, 2, 4)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    weights = torch.einsum("bqhc,bkhc->bhqk", query, key).div(2).softmax(-1)
    attended = torch.einsum("bhqk,bkhc->bqhc", weights, value).reshape(2, 24, 8)
    expected = sample + attention.to_out[0](attended).mT.reshape(sample.shape)
    torch.testing.assert_close(attention(sample), expected)


@torch.no_grad()
def test_the_decoder_takes_the_last_saved_map_first():
    block = BiFlowUpBlock3D(4, 4, False, None, temb_channels=5, groups=2)
    sample, first, second, temb = *torch.randn(3, 1, 4, 2, 2, 2), torch.randn(1, 5)
    inner = block.resnets[0](torch.cat([sample, second], dim=1), temb)
    expected = block.resnets[1](torch.cat([inner, first], dim=1), temb)
    assert torch.equal(block(sample, (first, second), temb), expected)
