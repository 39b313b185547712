import pytest
import torch
from slab_decoders import make_decoder
from torch import nn

from voxdiff.models.slab_decoding import SlabDecoder, layer_maps
from voxdiff.models.slab_maps import InputMap

SHAPES = {
    4: [(1, 4, 4, 4, 4), (2, 4, 3, 5, 4), (1, 4, 8, 2, 3)],
    8: [(1, 4, 4, 4, 4), (2, 4, 1, 2, 3), (1, 4, 3, 4, 2)],
}


def slab_decoder(decoder, latents, part):
    """Slab decoding with a budget between the smallest (part 0) and what lets everything be stored (1)."""
    generous = SlabDecoder(decoder, 10).plan(tuple(latents.shape), latents.dtype)
    budget = generous.minimum_bytes + part * (generous.peak_bytes - generous.minimum_bytes) + 1
    return SlabDecoder(decoder, budget / 2**30)


@torch.no_grad()
@pytest.mark.parametrize(("factor", "shape"), [(factor, shape) for factor in SHAPES for shape in SHAPES[factor]])
def test_it_equals_the_whole_decode(factor, shape):
    decoder = make_decoder(factor)
    latents = torch.randn(shape)
    whole = decoder(latents)
    for part in (0, 0.05, 0.4, 1):
        volume = slab_decoder(decoder, latents, part)(latents)
        torch.testing.assert_close(volume, whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16])
def test_any_slabs_give_the_whole_decode(rows, monkeypatch):
    decoder = make_decoder(4)
    latents = torch.randn(1, 4, 4, 3, 5)
    # slabs of this many rows at full resolution, of more below
    monkeypatch.setattr("voxdiff.models.slab_plan.SLAB_VOXELS", rows * 12 * 20)
    slabs = SlabDecoder(decoder, 1)
    assert slabs.plan(tuple(latents.shape), latents.dtype).passes[-1].rows == rows
    torch.testing.assert_close(slabs(latents), decoder(latents), atol=1e-5, rtol=0)


@torch.no_grad()
def test_borders_of_slabs_are_like_other_places():
    decoder = make_decoder(8).double()
    latents = torch.randn(1, 4, 4, 4, 4)
    exact = decoder(latents.double())
    slabs = slab_decoder(decoder.float(), latents, 0.05)
    rows = slabs.plan(tuple(latents.shape), latents.dtype).passes[-1].rows
    error = (slabs(latents).double() - exact).abs().mean(dim=(0, 1, 3, 4))
    border = torch.zeros(32, dtype=torch.bool)
    border[rows - 1 :: rows] = border[rows::rows] = True
    assert 2 < rows < 16
    assert error[border].mean() < 1.5 * error[~border].mean()


@torch.no_grad()
@pytest.mark.parametrize("part", [0, 1])
def test_channels_last_weights_and_turned_latents_give_the_same(part):
    decoder = make_decoder(4)
    latents = torch.randn(1, 4, 3, 4, 5).permute(0, 1, 4, 2, 3)
    whole = decoder(latents.contiguous())
    decoder.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(slab_decoder(decoder, latents, part)(latents), whole, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_whole_decode(dtype):
    decoder = make_decoder(4)
    latents = torch.randn(1, 4, 4, 4, 4)
    exact = decoder(latents)
    decoder.to(dtype)
    whole = decoder(latents.to(dtype))
    volume = slab_decoder(decoder, latents.to(dtype), 0.1)(latents.to(dtype))
    assert volume.dtype == dtype
    assert (volume - exact).std() < 1.2 * (whole - exact).std()


def test_what_it_cannot_do_raises():
    decoder = make_decoder(4)
    with pytest.raises(ValueError, match="max_memory_gb is 0; it must be a positive number of GiB"):
        SlabDecoder(decoder, 0)
    with pytest.raises(ValueError, match=r"decode under torch.no_grad\(\), or call disable_slab_decoding"):
        SlabDecoder(decoder, 1)(torch.randn(1, 4, 4, 4, 4, requires_grad=True))
    with pytest.raises(ValueError, match="too small to decode 2 volume"):
        SlabDecoder(decoder, 1e-5)(torch.randn(2, 4, 4, 4, 4))
    with pytest.raises(TypeError, match="layer of class Dropout, which slab decoding does not know"):
        layer_maps(nn.Dropout(), InputMap(4, (2, 2, 2)))
