import torch

from voxdiff.data.deformation import (
    average_down,
    exponentiate,
    jacobian_determinant,
    resize_field,
    sample_at,
    voxel_centres,
)
from voxdiff.data.random_fields import RandomStream

FOV = 208.0


def test_voxel_centres_are_in_mm_and_centred():
    points = voxel_centres(4, FOV)
    assert points[0, :, 0, 0].tolist() == [-78.0, -26.0, 26.0, 78.0]
    assert torch.equal(points[1, 0, :, 0], points[0, :, 0, 0])


def test_sampling_at_the_voxel_centres_gives_the_volume_with_axes_in_order():
    volume = torch.arange(2 * 6**3, dtype=torch.float32).reshape(2, 6, 6, 6)
    assert torch.allclose(sample_at(volume, voxel_centres(6, FOV), FOV), volume, atol=1e-3)


def test_sampling_moves_in_mm_along_the_named_axis():
    volume = torch.zeros(1, 8, 8, 8)
    volume[0, 5, 2, 3] = 1
    shift = torch.tensor([FOV / 8, 0, 0])[:, None, None, None]
    assert float(sample_at(volume, voxel_centres(8, FOV) + shift, FOV)[0, 4, 2, 3]) > 0.999


def test_average_down_keeps_the_integral_for_any_ratio():
    volume = torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    for size in (4, 8, 10):
        assert torch.allclose(average_down(volume, size).mean(), volume.mean(), atol=1e-6)
    assert torch.allclose(average_down(volume, 6), torch.nn.functional.avg_pool3d(volume, 2), atol=1e-6)
    assert average_down(volume, 12) is volume
    assert average_down(volume, 20) is volume


def test_resize_keeps_positions():
    ramp = voxel_centres(16, FOV)[:1]
    fine = resize_field(ramp, 32)
    inner = slice(1, -1)
    assert torch.allclose(fine[0, inner], voxel_centres(32, FOV)[0, inner], atol=1e-3)


def test_exponential_of_a_constant_velocity_is_a_translation():
    velocity = torch.ones(3, 16, 16, 16) * torch.tensor([2.0, -1.0, 0.5])[:, None, None, None]
    assert torch.allclose(exponentiate(velocity, FOV), velocity, atol=1e-4)


def test_exponential_of_the_negative_velocity_is_the_inverse():
    velocity = 3 * RandomStream(0, "velocity").field(3, 32, 20.0, FOV)
    forward, backward = exponentiate(velocity, FOV), exponentiate(-velocity, FOV)
    points = voxel_centres(32, FOV)
    there = points + forward
    back = there + sample_at(backward, there, FOV, padding="border")
    error = (back - points)[:, 4:-4, 4:-4, 4:-4].norm(dim=0)
    assert float(forward.norm(dim=0).mean()) > 3
    assert float(error.mean()) < 0.2
    assert float(error.max()) < 0.6


def test_jacobian_of_a_linear_map_is_its_determinant():
    matrix = torch.tensor([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.1], [0.0, 0.3, 1.2]])
    points = voxel_centres(8, FOV)
    displacement = torch.einsum("ij,jxyz->ixyz", matrix, points) - points
    determinant = jacobian_determinant(displacement, FOV)
    assert torch.allclose(determinant, torch.linalg.det(matrix).expand_as(determinant), atol=1e-4)


def test_jacobian_sees_a_fold():
    points = voxel_centres(8, FOV)
    displacement = torch.stack([-2 * points[0], torch.zeros_like(points[0]), torch.zeros_like(points[0])])
    assert float(jacobian_determinant(displacement, FOV).max()) < 0
