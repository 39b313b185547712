import torch

from voxdiff.data.random_fields import RandomStream


def test_a_stream_depends_on_its_key_only():
    first = RandomStream(3, "anatomy")
    RandomStream(3, "lesion").normals(100)
    again = RandomStream(3, "anatomy")
    assert torch.equal(first.normals(50), again.normals(50))
    assert first.uniform(0, 1) == again.uniform(0, 1)


def test_seed_and_name_each_give_another_stream():
    draws = {RandomStream(*key).uniform(0, 1) for key in [(1, "a"), (2, "a"), (1, "b"), (1, "a", "b"), (12, "a")]}
    assert len(draws) == 5


def test_first_numbers_of_a_stream_are_pinned():
    stream = RandomStream(0, "anatomy")
    assert abs(stream.uniform(0, 1) - 0.7326409933825322) < 1e-12
    assert abs(float(stream.normals(1)) - 0.19599288702011108) < 1e-6


def test_uniform_stays_in_its_interval_and_fills_it():
    stream = RandomStream(0, "range")
    draws = [stream.uniform(-2.5, 6.0) for _ in range(500)]
    assert -2.5 <= min(draws) < -2.3
    assert 5.8 < max(draws) <= 6.0


def test_field_has_unit_variance_and_the_asked_correlation_length():
    field = RandomStream(0, "field").field(2, 48, 8.0, 208.0)
    assert torch.allclose(field.std(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    # White noise smoothed by a Gaussian of sigma has correlation exp(-d^2 / (4 sigma^2)) at distance d.
    voxels = 3
    distance = voxels * 208.0 / 48
    correlation = (field * field.roll(voxels, dims=1)).mean()
    assert abs(float(correlation) - float(torch.exp(torch.tensor(-(distance**2) / (4 * 8.0**2))))) < 0.05
