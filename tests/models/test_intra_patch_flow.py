import pytest
import torch

from voxdiff.models.intra_patch_flow import DiTBlock, IntraPatchFlow, position_embedding


def make_flow(block="dit", **changes):
    torch.manual_seed(0)
    options = {"sub_volume_size": 4, "token_size": 2, "num_heads": 2, "groups": 3, **changes}
    flow = IntraPatchFlow(2, 6, 10, block=block, **options)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow


@pytest.mark.parametrize("block", ["dit", "unet"])
@pytest.mark.parametrize("token_size", [1, 2, 4])
@torch.no_grad()
def test_four_maps_of_the_volume_in_which_no_sub_volume_knows_another(block, token_size):
    flow = make_flow(block, token_size=token_size)
    sample, temb = torch.randn(2, 2, 4, 8, 12), torch.randn(2, 10)
    moved = sample.clone()
    moved[1, :, 0, 5, 9] += 1
    for before, after in zip(flow(sample, temb), flow(moved, temb), strict=True):
        assert before.shape == (2, 6, 4, 8, 12)
        change = (after - before).abs().amax(dim=1)
        assert (change[1, :, 4:, 8:] > 0).all()
        change[1, :, 4:, 8:] = 0
        assert change.max() < 1e-5


@pytest.mark.parametrize("block", ["dit", "unet"])
@torch.no_grad()
def test_every_cube_is_treated_alike_and_every_sample_by_its_own_embedding(block):
    flow = make_flow(block)
    cube, temb = torch.randn(1, 2, 4, 4, 4), torch.randn(2, 10)
    sample = cube.repeat(2, 1, 1, 2, 1)
    for feature in flow(sample, temb):
        torch.testing.assert_close(feature[:, :, :, :4], feature[:, :, :, 4:])
        assert (feature[0] - feature[1]).abs().max() > 1e-2
    for both, alone in zip(flow(sample, temb), flow(sample[1:], temb[1:]), strict=True):
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_voxel_keeps_its_place():
    """With one token a voxel and heads that copy, the maps are the embedded volume."""
    flow = make_flow(token_size=1)
    volume = torch.arange(4 * 8 * 12.0).reshape(1, 1, 4, 8, 12)
    tokens = flow._split(volume, [1, 2, 3])
    assert tokens.shape == (1, 6, 64, 1)
    assert tokens[0, 5, :3, 0].tolist() == [volume[0, 0, 0, 4, 8 + z].item() for z in range(3)]
    assert torch.equal(flow._join(tokens, [1, 2, 3]), volume)


@torch.no_grad()
def test_a_token_spreads_over_its_voxels():
    flow = make_flow(token_size=2)
    volume = torch.arange(4 * 8 * 12.0).reshape(1, 1, 4, 8, 12)
    inside = torch.stack([volume[..., x::2, y::2, z::2] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dim=-1)
    patches = flow._split(inside[0].movedim(-1, 1), [1, 2, 3])
    assert torch.equal(flow._join(patches, [1, 2, 3]), volume)


def test_positions_are_sines_and_cosines_axis_by_axis():
    positions = position_embedding(12, 3)
    assert positions.shape == (1, 27, 12)
    x, y, z = 2, 0, 1
    axes = [[torch.tensor(p / 100.0**i) for i in range(2)] for p in (x, y, z)]
    expected = [f(angle) for axis in axes for f in (torch.sin, torch.cos) for angle in axis]
    torch.testing.assert_close(positions[0, 9 * x + 3 * y + z], torch.stack(expected))


@torch.no_grad()
def test_a_fresh_transformer_block_is_the_identity_on_its_merged_tokens():
    tokens, skip, temb = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 8, 6), torch.randn(2, 10)
    assert torch.equal(DiTBlock(6, 10, 2, 4)(tokens, temb), tokens)
    merging = DiTBlock(6, 10, 2, 4, with_skip=True)
    expected = merging.skip_linear(torch.cat([tokens, skip], dim=-1))
    assert torch.equal(merging(tokens, temb, skip), expected)
