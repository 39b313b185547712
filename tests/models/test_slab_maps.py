import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_autoencoder_3d import Attention3D, AutoencoderResnetBlock3D
from voxdiff.models.slab_decoding import layer_maps
from voxdiff.models.slab_maps import AttentionMap, ConvMap, GroupMoments, InputMap, UpsampleMap


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def stored(*shape):
    tensor = torch.randn(1, *shape)
    return InputMap(shape[0], shape[1:], tensor), tensor


def spread(module):
    """Give a module's norms weights and biases that are not one and zero."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5)
    return module


def measure(map_, rows=3):
    for start in range(0, map_.depth, rows):
        map_.moments.update(map_.rows(start, min(start + rows, map_.depth)))


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_statistics_of_slabs_give_the_group_norm(rows, layout):
    norm = spread(nn.GroupNorm(3, 6, eps=1e-6))
    tensor = (torch.randn(1, 6, 7, 20, 20) * 0.1 + 50 + torch.arange(7.0).view(7, 1, 1)).contiguous(
        memory_format=layout
    )
    moments = GroupMoments(3)
    for slab in tensor.split(rows, dim=2):
        moments.update(slab)
    expected = nn.functional.group_norm(tensor.double(), 3, norm.weight.double(), norm.bias.double(), 1e-6)
    torch.testing.assert_close(
        moments.normalize(tensor[:, :, 2:5], norm).double(), expected[:, :, 2:5], atol=1e-4, rtol=0
    )


def test_statistics_of_a_16_bit_map_are_gathered_in_single_precision():
    tensor = (torch.randn(1, 4, 6, 16, 16) * 0.01 + 3).bfloat16()
    moments = GroupMoments(2)
    moments.update(tensor)
    norm = nn.GroupNorm(2, 4).bfloat16()
    result = moments.normalize(tensor, norm)
    assert result.dtype == torch.bfloat16
    expected = F.group_norm(tensor.double(), 2)
    assert (result.double() - expected).abs().max() < 2**-8 * expected.abs().max()


@pytest.mark.parametrize("window", [(0, 1), (0, 5), (1, 4), (2, 3), (3, 5), (4, 5)])
def test_any_rows_of_a_residual_block_are_those_of_the_whole_map(window):
    block = spread(AutoencoderResnetBlock3D(4, 6, groups=2, eps=1e-6))
    source, tensor = stored(4, 5, 6, 7)
    hidden, result = layer_maps(block, source)
    measure(source)
    measure(hidden)
    torch.testing.assert_close(result.rows(*window), block(tensor)[:, :, slice(*window)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", range(8))
def test_any_rows_of_a_doubling_are_those_of_the_whole_map(start):
    conv = nn.ConvTranspose3d(3, 3, 4, stride=2, padding=1)
    source, tensor = stored(3, 4, 3, 2)
    doubled = UpsampleMap(source, conv)
    assert doubled.size == (8, 6, 4)
    for stop in range(start + 1, 9):
        torch.testing.assert_close(doubled.compute(start, stop), conv(tensor)[:, :, start:stop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_attention_of_a_slab_sees_all_voxels(rows):
    attention = spread(Attention3D(8, 2, 4, groups=2, eps=1e-6))
    source, tensor = stored(8, 5, 3, 2)
    attended = AttentionMap(source, attention)
    measure(source)
    attended.prepare(rows)
    result = torch.cat([attended.compute(start, min(start + rows, 5)) for start in range(0, 5, rows)], dim=2)
    torch.testing.assert_close(result, attention(tensor), atol=1e-6, rtol=0)


def test_rows_in_succession_are_computed_once(monkeypatch):
    conv = nn.Conv3d(2, 2, 3, padding=1)
    source, tensor = stored(2, 9, 4, 4)
    middle = ConvMap(source, conv)
    last = ConvMap(middle, conv, residual=middle)
    computed = []
    compute = middle.compute
    monkeypatch.setattr(middle, "compute", lambda *window: computed.extend(range(*window)) or compute(*window))
    result = torch.cat([last.compute(start, start + 3) for start in (0, 3, 6)], dim=2)
    assert computed == list(range(9))
    torch.testing.assert_close(result, conv(conv(tensor)) + conv(tensor), atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_small_slabs_are_not_unfolded():
    conv = nn.Conv3d(4, 4, 3, padding=1)
    source, tensor = stored(4, 6, 8, 8)
    with torch.profiler.profile() as profile:
        rows = ConvMap(source, conv).compute(1, 3)
    torch.testing.assert_close(rows, conv(tensor)[:, :, 1:3], atol=1e-6, rtol=0)
    assert not any("slow_conv" in event.key for event in profile.key_averages())
