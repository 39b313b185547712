import numpy as np
import pytest
import torch
from torch import nn

from voxdiff.metrics.extractors.base import FeatureExtractor, Features, resize
from voxdiff.metrics.features import extract_features, slice_positions, take_slices


class Moments(nn.Module):
    """Mean, maximum and share of bright voxels: features whose values are known."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images):
        self.calls += len(images)
        flat = images.flatten(1)
        return torch.stack([flat.mean(1), flat.amax(1), (flat > 0.5).float().mean(1)], 1) * self.scale


class Classifying(FeatureExtractor):
    def forward(self, images):
        values = self.network(images)
        return Features(values, values.softmax(1))


def extractor(spatial_dims=3, kind=FeatureExtractor, **settings):
    return kind(
        name="moments", network=Moments(), spatial_dims=spatial_dims, num_features=3, sha256="0" * 64, **settings
    )


def volumes(number, shape=(8, 8, 8)):
    return [torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


def test_features_of_volumes_are_those_of_the_network():
    found = extract_features(extractor(), volumes(20))
    assert found.values.shape == (20, 3) and found.values.dtype == np.float64 and found.num_volumes == 20
    assert np.allclose(found.values[7, 0], volumes(20)[7].mean())
    assert found.probabilities is None


def test_slices_are_grouped_by_volume():
    one = torch.zeros(1, 16, 16, 16)
    one[0, :, :, 4] = 1.0
    found = extract_features(extractor(2), [one, torch.zeros(1, 16, 16, 16)], plane="axial", slices_per_plane=12)
    assert found.values.shape == (24, 3) and found.groups.tolist() == [0] * 12 + [1] * 12
    assert found.values[:, 1].tolist().count(1.0) == 1
    sagittal = extract_features(extractor(2), [one], plane="sagittal", slices_per_plane=12)
    assert (sagittal.values[:, 1] == 1).all()


def test_slice_positions_cover_the_middle_three_quarters():
    assert slice_positions(64, 48) == list(range(8, 56))
    assert slice_positions(64, 1) == [32]
    assert take_slices(torch.zeros(1, 16, 8, 4), "coronal", 4).shape == (4, 1, 16, 4)


def test_of_volumes_takes_all_rows_of_each():
    found = extract_features(extractor(2), volumes(4), plane="axial", slices_per_plane=2)
    chosen = found.of_volumes([3, 1])
    assert chosen.groups.tolist() == [0, 0, 1, 1]
    assert np.array_equal(chosen.values, found.values[[6, 7, 2, 3]])


def test_cache_survives_a_killed_run(tmp_path):
    used, seen = extractor(kind=Classifying), []

    def stop():
        seen.append(1)
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(used, volumes(40), cache_dir=tmp_path, on_volume=stop)
    calls = used.network.calls
    assert calls == 32
    again = extract_features(used, volumes(40), cache_dir=tmp_path)
    assert used.network.calls == 40
    fresh = extract_features(extractor(kind=Classifying), volumes(40))
    assert np.array_equal(again.values, fresh.values) and np.array_equal(again.probabilities, fresh.probabilities)
    assert not list(tmp_path.glob(".tmp*"))


def test_cache_belongs_to_volumes_and_extractor(tmp_path):
    used = extractor()
    extract_features(used, volumes(3), cache_dir=tmp_path)
    changed = [volume * 0.5 for volume in volumes(3)]
    assert np.allclose(
        extract_features(used, changed, cache_dir=tmp_path).values[:, 0] * 2,
        extract_features(used, volumes(3), cache_dir=tmp_path).values[:, 0],
    )
    other = extractor()
    other.sha256 = "1" * 64
    extract_features(other, volumes(3), cache_dir=tmp_path)
    assert other.network.calls == 3


def test_a_damaged_cache_says_so(tmp_path):
    extract_features(extractor(), volumes(2), cache_dir=tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"x")
    with pytest.raises(ValueError, match="delete the file"):
        extract_features(extractor(), volumes(2), cache_dir=tmp_path)


def test_plane_and_extractor_must_agree():
    with pytest.raises(ValueError, match="give a plane"):
        extract_features(extractor(2), volumes(1))
    with pytest.raises(ValueError, match="none to a 3D one"):
        extract_features(extractor(3), volumes(1), plane="axial")


def test_wrong_rank_is_refused():
    with pytest.raises(ValueError, match="give \\(batch, 1, x, y, z\\)"):
        extractor()(torch.zeros(1, 8, 8))


def test_resize_pads_to_a_cube_and_keeps_the_mean():
    images = torch.ones(1, 1, 8, 4, 8)
    found = resize(images, (4, 4, 4))
    assert found.shape == (1, 1, 4, 4, 4)
    assert found[0, 0, :, 1:3].eq(1).all() and found[0, 0, :, [0, 3]].eq(0).all()
    checkered = (torch.arange(16).reshape(1, 1, 16, 1, 1) % 2).float().expand(1, 1, 16, 16, 16)
    assert torch.allclose(resize(checkered, (4, 4, 4)), torch.full((1, 1, 4, 4, 4), 0.5))
