import numpy as np
import torch
from PIL import Image

from voxdiff.metrics import pictures
from voxdiff.metrics.features import FeatureSet


def volumes(number, shape=(12, 14, 10)):
    return [torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


def is_picture(path):
    values = np.asarray(Image.open(path).convert("L"))
    return values.std() > 5 and not list(path.parent.glob(".tmp*"))


def test_every_picture_is_written(tmp_path):
    real, synthetic = volumes(5), volumes(3)
    pictures.save_montage(tmp_path / "a.png", {"real": real, "synthetic": synthetic})
    pictures.save_neighbours(tmp_path / "b.png", synthetic, real, [(0, 1, "0.9"), (2, 0, "0.8")], "training")
    pictures.save_profiles(tmp_path / "c.png", real, synthetic, (-1000.0, 1000.0, "HU"))
    features = [FeatureSet(np.random.default_rng(seed).normal(size=(8, 5)), np.arange(8)) for seed in range(2)]
    pictures.save_embedding(tmp_path / "d.png", *features, "toy")
    assert all(is_picture(tmp_path / f"{name}.png") for name in "abcd")


def test_power_spectrum_finds_a_wave():
    wave = np.cos(2 * np.pi * 4 * np.arange(32) / 32)[:, None, None] * np.ones((32, 32, 32))
    frequency, power = pictures.radial_power_spectrum(wave)
    peak = frequency[power.argmax()]
    assert abs(peak - 4 / 32) < 0.5 / 32 and power.max() > 100 * np.median(power)


def test_white_noise_has_a_flat_spectrum():
    frequency, power = pictures.radial_power_spectrum(np.random.default_rng(0).normal(size=(24, 20, 16)), bins=12)
    assert abs(power[2:] - 1).max() < 0.25 and frequency.max() < 0.5


def test_a_voxel_is_as_long_as_it_is():
    planes = pictures._planes(torch.rand(1, 8, 8, 4), (1.0, 1.0, 2.0))
    assert planes.shape == (8, 24)


def test_superior_is_up_and_anterior_is_up():
    volume = torch.zeros(1, 8, 8, 8)
    volume[0, 4, 4, 7] = 1.0
    volume[0, 4, 7, 4] = 0.5
    axial, coronal = np.split(pictures._planes(volume)[:, :16], 2, axis=1)
    assert coronal[0].max() == 1 and axial[0].max() == 0.5
