import pytest
import torch

from voxdiff.data.anatomy import BRAIN_FOV_MM, WM, draw_brain
from voxdiff.data.deformation import jacobian_determinant, sample_at, voxel_centres
from voxdiff.data.lesions import draw_lesion

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def cases():
    brains = [draw_brain(seed) for seed in SEEDS]
    return [(brain, draw_lesion(seed, brain)) for seed, brain in zip(SEEDS, brains, strict=True)]


def test_lesions_sit_in_white_matter_and_vary(cases):
    for brain, lesion in cases:
        white = brain.on_grid(48).fractions[WM:]
        assert float(sample_at(white, lesion.centre[:, None, None, None], BRAIN_FOV_MM)) > 0.3
        assert 6 <= lesion.radius_mm <= 17
    assert len({lesion.radius_mm for _, lesion in cases}) == len(SEEDS)


def test_mass_effect_pushes_outwards_is_local_and_does_not_fold(cases):
    _, lesion = cases[0]
    points = voxel_centres(64, BRAIN_FOV_MM)
    offset = points - lesion.centre[:, None, None, None]
    displacement = lesion.displaced_points(64) - points
    assert float((displacement * offset).sum(0).max()) <= 0  # tissue seen here comes from nearer to the centre
    assert float(displacement.norm(dim=0).max()) == pytest.approx(lesion.push_mm, rel=0.15)
    far = offset.norm(dim=0) > 3 * (lesion.radius_mm + 6)
    assert torch.equal(displacement[:, far], torch.zeros_like(displacement[:, far]))
    assert float(jacobian_determinant(displacement, BRAIN_FOV_MM).min()) > 0.2


def test_labels_are_brats_2023_and_nested(cases):
    for brain, lesion in cases:
        tissue = brain.on_grid(64, lesion.displaced_points(64))
        fractions, labels = lesion.add_to(tissue)
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) == {0, 1, 2, 3}
        assert not labels[~tissue.mask].any()
        assert torch.allclose(fractions.sum(0)[tissue.mask], torch.ones(1), atol=1e-4)
        assert float(fractions.min()) >= 0
        offset = (voxel_centres(64, BRAIN_FOV_MM) - lesion.centre[:, None, None, None]).norm(dim=0)
        assert not lesion.shares(tissue)[:, offset > 3 * (lesion.radius_mm + 6)].any()
        necrosis, oedema, enhancing = (float(offset[labels == label].mean()) for label in (1, 2, 3))
        assert necrosis < enhancing < oedema


def test_the_lesion_does_not_depend_on_the_grid(cases):
    brain, lesion = cases[1]
    volumes, centroids = [], []
    for size in (48, 96):
        _, labels = lesion.add_to(brain.on_grid(size, lesion.displaced_points(size)))
        volumes.append(float((labels > 0).sum()) * (BRAIN_FOV_MM / size) ** 3 / 1000)
        centroids.append(voxel_centres(size, BRAIN_FOV_MM)[:, labels > 0].mean(1))
    assert volumes[0] == pytest.approx(volumes[1], rel=0.1)
    assert float((centroids[0] - centroids[1]).norm()) < 1.0
