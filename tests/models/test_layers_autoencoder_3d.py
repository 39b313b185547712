import pytest
import torch

from voxdiff.models.layers_autoencoder_3d import Attention3D, Decoder3D, Encoder3D, norm_silu

TINY = {"num_attention_heads": 2, "attention_head_dim": 4, "norm_num_groups": 2, "norm_eps": 1e-6}
PUBLISHED = {"num_attention_heads": 4, "attention_head_dim": 32, "norm_num_groups": 24, "norm_eps": 1e-6}


@pytest.mark.parametrize(
    "widths, encoder, decoder",
    [((48, 96, 192, 192), 15_836_696, 18_982_081), ((48, 96, 96), 3_928_184, 4_557_313)],
)
def test_published_widths_give_the_published_parameter_counts(widths, encoder, decoder):
    with torch.device("meta"):
        assert sum(p.numel() for p in Encoder3D(1, 8, widths, **PUBLISHED).parameters()) == encoder
        assert sum(p.numel() for p in Decoder3D(8, 1, widths, **PUBLISHED).parameters()) == decoder


def test_every_level_but_the_last_halves_and_doubles():
    volume = torch.randn(1, 1, 8, 4, 12)
    latents = Encoder3D(1, 3, (2, 4, 4), **TINY)(volume)
    assert latents.shape == (1, 3, 2, 1, 3)
    assert Decoder3D(3, 1, (2, 4, 4), **TINY)(latents).shape == volume.shape


def test_attention_is_the_softmax_over_all_voxels():
    attention = Attention3D(4, 2, 3, groups=2, eps=1e-6)
    hidden = torch.randn(1, 4, 2, 3, 2)
    tokens = attention.group_norm(hidden).flatten(2)[0].T
    heads = []
    for head in range(2):
        rows = slice(3 * head, 3 * head + 3)
        q, k, v = ((tokens @ layer.weight.T)[:, rows] for layer in (attention.to_q, attention.to_k, attention.to_v))
        heads.append(torch.softmax(q @ k.T / 3**0.5, dim=1) @ v)
    expected = hidden + attention.to_out[0](torch.cat(heads, 1)).T.view(1, 4, 2, 3, 2)
    torch.testing.assert_close(attention(hidden), expected)


def test_the_activation_in_place_leaves_the_input_alone():
    norm, hidden = torch.nn.GroupNorm(2, 4), torch.randn(1, 4, 3, 3, 3)
    kept = hidden.clone()
    expected = norm_silu(norm, hidden)
    with torch.no_grad():
        assert norm_silu(norm, hidden).equal(expected)
    assert hidden.equal(kept)
