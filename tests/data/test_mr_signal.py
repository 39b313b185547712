import math

import pytest
import torch

from voxdiff.data.mr_signal import (
    MR_CONTRASTS,
    draw_acquisition,
    draw_tissue_properties,
    inversion_recovery,
    magnetisation_prepared,
    spin_echo,
    spoiled_gradient_echo,
)

CSF, GM, WM, OEDEMA, NECROSIS, ENHANCING = range(6)


def test_spoiled_gradient_echo_peaks_at_the_ernst_angle():
    t1, repetition = 800.0, 20.0
    ernst = math.acos(math.exp(-repetition / t1))
    at, below, above = (
        spoiled_gradient_echo(repetition, 5.0, ernst * factor)(t1, 80.0, 1.0) for factor in (1.0, 0.9, 1.1)
    )
    assert at > below
    assert at > above


def test_spin_echo_is_the_proton_density_when_fully_relaxed():
    assert spin_echo(1e6, 0.0)(900.0, 90.0, 0.8) == pytest.approx(0.8)
    assert spin_echo(1e6, 90.0)(900.0, 90.0, 0.8) == pytest.approx(0.8 / math.e)


def test_inversion_recovery_nulls_at_its_null_point():
    t1 = 1000.0
    assert inversion_recovery(t1 * math.log(2), 1e6, 0.0)(t1, 100.0, 1.0) == pytest.approx(0, abs=1e-9)


def test_magnetisation_prepared_is_recovered_after_a_long_inversion_time():
    assert magnetisation_prepared(1e6, 1e6, 0.0)(900.0, 90.0, 0.7) == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(6))
def test_contrasts_order_the_tissues_as_in_the_clinic(seed):
    tissue = draw_tissue_properties(seed)
    levels = {name: draw_acquisition(seed, name, tissue).levels for name in MR_CONTRASTS}
    assert levels["t1"][WM] > levels["t1"][GM] > levels["t1"][CSF]
    assert levels["t2"][CSF] > levels["t2"][GM] > levels["t2"][WM]
    assert levels["flair"][OEDEMA] > levels["flair"][GM] > levels["flair"][WM] > 3 * levels["flair"][CSF]
    assert levels["t1gd"][ENHANCING] > 1.2 * levels["t1gd"][WM]
    assert levels["t1"][ENHANCING] < levels["t1"][WM]


def test_noise_is_rician_at_the_stated_level_and_only_in_the_brain():
    tissue = draw_tissue_properties(0)
    acquisition = draw_acquisition(0, "t1", tissue)
    fractions = torch.zeros(3, 32, 32, 32)
    coverage = torch.zeros(32, 32, 32)
    coverage[:16] = 1
    quiet = acquisition.scan(fractions, coverage, torch.zeros(3, 32, 32, 32))
    assert float(quiet[16:].abs().max()) == 0
    # No signal: Rayleigh, whose mean square is twice the variance of each channel.
    assert float((quiet[:16] ** 2).mean()) == pytest.approx(2 * acquisition.noise_level**2, rel=0.05)


def test_scans_have_bias_and_texture():
    tissue = draw_tissue_properties(1)
    acquisition = draw_acquisition(1, "t2", tissue)
    white = torch.zeros(3, 32, 32, 32)
    white[WM] = 1
    ones = torch.ones(32, 32, 32)
    flat = acquisition.scan(white, ones, torch.zeros(3, 32, 32, 32))
    octants = torch.nn.functional.avg_pool3d(flat[None], 16)
    assert float(octants.max() / octants.min()) > 1.03
    textured = acquisition.scan(white, ones, tissue.texture(32))
    assert 0.005 < float((textured - flat).std() / flat.mean()) < 0.1
