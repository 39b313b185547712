import torch

from voxdiff.models.layers_slice_conditioned import SliceConditionedDownBlock, SliceConditionedUpBlock
from voxdiff.models.slice_attention import SliceSet, distance_features

OPTIONS = {"num_heads": 2, "groups": 2, "eps": 1e-5, "masked_norm": False, "pre_norm_residual": True}
SLICES = SliceSet(torch.randn(2, 16), distance_features(torch.rand(2, 3)), None)
TEMB = torch.randn(6, 16)


def test_fresh_layers_are_the_identity():
    block = SliceConditionedDownBlock(
        [(8, 8)] * 2, 16, attentions=2, scale_shift_norm=True, add_downsample=False, **OPTIONS
    )
    hidden_states = torch.randn(6, 8, 4, 4)
    output, maps = block(hidden_states, TEMB, SLICES)
    assert torch.equal(output, hidden_states) and len(maps) == 2


def test_the_embedding_enters_as_configured():
    for scale_shift_norm, rows in ((True, 16), (False, 8)):
        block = SliceConditionedDownBlock(
            [(4, 8)], 16, attentions=0, scale_shift_norm=scale_shift_norm, add_downsample=True, **OPTIONS
        )
        assert block.resnets[0].time_emb_proj.weight.shape == (rows, 16)
        torch.nn.init.normal_(block.resnets[0].conv2.weight)
        output, maps = block(torch.randn(6, 4, 4, 6), TEMB, SLICES)
        other, _ = block(torch.zeros(6, 4, 4, 6), TEMB + 1, SLICES)
        assert output.shape == (6, 8, 2, 3) and maps[-1] is output
        assert (block(torch.zeros(6, 4, 4, 6), TEMB, SLICES)[0] - other).abs().max() > 1e-3


def test_a_halving_has_one_convolution():
    block = SliceConditionedDownBlock([(8, 8)], 16, attentions=0, scale_shift_norm=True, add_downsample=True, **OPTIONS)
    assert {key for key in block.state_dict() if key.startswith("downsamplers")} == {
        "downsamplers.0.conv.weight",
        "downsamplers.0.conv.bias",
    }


def test_slots_are_dropped_after_the_last_attention():
    block = SliceConditionedUpBlock([(16, 8)], 16, attentions=1, scale_shift_norm=True, add_upsample=True, **OPTIONS)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    hidden_states, skip, keep = torch.randn(6, 8, 4, 4), torch.randn(6, 8, 4, 4), torch.tensor([4, 1])
    maps = [torch.zeros(0), skip]
    result = block(hidden_states, maps, TEMB, SLICES, keep=keep)
    assert result.shape == (2, 8, 8, 8) and len(maps) == 1
    torch.testing.assert_close(result, block(hidden_states, [skip], TEMB, SLICES)[keep], atol=1e-5, rtol=1e-5)
