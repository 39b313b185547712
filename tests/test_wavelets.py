import pytest
import torch
from goldens import load_golden

from voxdiff.wavelets import BAND_NAMES, WaveletTransform, haar_analysis, haar_synthesis


def bands_as_golden(bands, channels):
    """Ours are volume-major channels; the golden file stacks bands on axis 1."""
    return bands.unflatten(1, (channels, 8)).transpose(1, 2)


@pytest.mark.parametrize("case", [0, 1])
def test_analysis_and_synthesis_agree_with_the_official_transform(case):
    meta, _, inputs, outputs = load_golden("wdm_dwt")
    volume, bands = inputs[f"volume{case}"], inputs[f"bands{case}"]
    analysed = bands_as_golden(haar_analysis(volume), volume.shape[1])
    torch.testing.assert_close(analysed, outputs[f"bands{case}"], atol=meta["atol"], rtol=0)
    synthesised = haar_synthesis(bands.transpose(1, 2).flatten(1, 2))
    torch.testing.assert_close(synthesised, outputs[f"volume{case}"], atol=meta["atol"], rtol=0)


@pytest.mark.parametrize("band", range(8))
def test_each_band_is_the_signed_sum_that_its_name_says(band):
    cell = torch.randn(2, 2, 2, dtype=torch.float64)
    expected = cell
    for letter in BAND_NAMES[band]:  # x first: each step reduces the leading axis
        expected = (expected[0] + expected[1] if letter == "L" else expected[0] - expected[1]) / 2**0.5
    actual = haar_analysis(cell[None, None])[0, band].squeeze()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(4, 6, 10), (2, 2, 2), (8, 4, 20)])
def test_synthesis_inverts_analysis(dtype, grid):
    volume = torch.randn(2, 3, *grid).to(dtype)
    rebuilt = haar_synthesis(haar_analysis(volume))
    assert rebuilt.dtype == dtype
    assert (rebuilt - volume).abs().max() <= 8 * torch.finfo(dtype).eps


def test_synthesis_is_the_adjoint_of_analysis():
    volume, bands = torch.randn(1, 2, 4, 6, 8).double(), torch.randn(1, 16, 2, 3, 4).double()
    assert torch.isclose((haar_analysis(volume) * bands).sum(), (volume * haar_synthesis(bands)).sum())


def test_gradients_flow():
    volume = torch.randn(1, 1, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar_analysis, volume)
    bands = torch.randn(1, 8, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar_synthesis, bands)


def test_transform_scales_the_bands_and_inverts_itself():
    volume = torch.randn(1, 2, 4, 4, 4)
    transform = WaveletTransform("haar", (3.0, 0.25, 1, 1, 1, 1, 1, 2.0))
    coefficients, plain = transform.analysis(volume), haar_analysis(volume)
    torch.testing.assert_close(coefficients[:, [0, 8]], plain[:, [0, 8]] / 3)
    torch.testing.assert_close(coefficients[:, [1, 9]], plain[:, [1, 9]] * 4)
    torch.testing.assert_close(coefficients[:, [7, 15]], plain[:, [7, 15]] / 2)
    torch.testing.assert_close(transform.synthesis(coefficients), volume)


def test_voxel_space_is_the_identity():
    volume = torch.randn(1, 1, 3, 3, 3)
    transform = WaveletTransform(None)
    assert (transform.stride, transform.channels_per_volume) == (1, 1)
    assert transform.analysis(volume) is volume and transform.synthesis(volume) is volume


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 4), (1, 4, 4, 4), (1, 1, 0, 2, 2)])
def test_odd_or_flat_volumes_raise(shape):
    with pytest.raises(ValueError, match=r"even x, y and z"):
        haar_analysis(torch.zeros(shape))


def test_bad_settings_raise():
    with pytest.raises(ValueError, match="eight bands"):
        haar_synthesis(torch.zeros(1, 7, 2, 2, 2))
    with pytest.raises(ValueError, match="allowed are 'haar' and None"):
        WaveletTransform("db4")
    with pytest.raises(ValueError, match="8 positive divisors"):
        WaveletTransform("haar", (3.0, 1.0))
