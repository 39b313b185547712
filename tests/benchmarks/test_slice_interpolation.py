import numpy as np
import pytest
import torch
from slice_interpolation import calibrate, interpolate, measure_case, sum_by_spread


@pytest.mark.parametrize("widths", [(0.02, 0.02), (0.005, 0.1)])
def test_samples_of_the_law_of_the_truth_are_calibrated_in_every_bin(widths):
    random = torch.Generator().manual_seed(0)
    sigma = torch.exp(torch.linspace(*np.log(widths), 200_000))
    real, *samples = sigma * torch.randn(5, len(sigma), generator=random)
    rows = calibrate([{"calibration": sum_by_spread(real, torch.stack(samples))}])
    assert sum(row["share"] for row in rows[:-1]) == pytest.approx(1) == rows[-1]["share"]
    assert all(row["ratio"] == pytest.approx(1, abs=0.05) for row in rows if row["share"] > 0.02)


def test_too_narrow_samples_are_not():
    random = torch.Generator().manual_seed(0)
    real, *samples = torch.randn(5, 50_000, generator=random)
    rows = calibrate([{"calibration": sum_by_spread(real, 0.5 * torch.stack(samples))}])
    assert rows[-1]["ratio"] == pytest.approx(((1 + 0.25 / 2) / (0.25 * 1.5)) ** 0.5, rel=0.02)


def test_interpolation_gives_lines_and_cubics_back():
    places = torch.linspace(0, 1, 13)
    line, cubic = (0.2 + 0.6 * places).expand(2, 2, 13), (places**3).expand(2, 2, 13)
    for values, degree in ((line, 1), (cubic, 3)):
        torch.testing.assert_close(interpolate(values, 4, degree), values, atol=1e-6, rtol=0)
    assert (interpolate(cubic, 4, 1) - cubic).abs().max() > 0.01


def test_only_missing_slices_are_scored():
    real = torch.rand(16, 16, 13, generator=torch.Generator().manual_seed(0))
    samples = real.repeat(4, 1, 1, 1)
    samples[..., ::2] = 0
    found = measure_case(real, samples, 2)
    assert found["methods"]["one sample"]["psnr"] == 120
    assert found["methods"]["linear"]["psnr"] < 20
    assert sum(found["calibration"]["voxels"]) == 2 * 16 * 16 * 6
