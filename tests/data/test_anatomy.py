import pytest
import torch

from voxdiff.data.anatomy import BRAIN_FOV_MM, BRAIN_TEMPLATES, draw_brain, load_brain_template
from voxdiff.data.deformation import average_down, jacobian_determinant

SEEDS = range(12)


@pytest.fixture(scope="module")
def brains():
    return [draw_brain(seed) for seed in SEEDS]


@pytest.mark.parametrize(("name", "ventricles_ml"), [("mni152", 13.4), ("colin27", 21.9)])
def test_templates_are_fractions_with_ventricles_in_the_middle(name, ventricles_ml):
    template = load_brain_template(name)
    total = template.fractions.sum(0)
    assert float(template.fractions.min()) >= 0
    assert float(total.max()) <= 1 + 1e-5
    fluid = average_down(template.fractions, 64)[0] * template.ventricles[0]
    volume_ml = float(fluid.sum()) * (BRAIN_FOV_MM / 64) ** 3 / 1000
    assert volume_ml == pytest.approx(ventricles_ml, rel=0.02)
    assert float(fluid[:20].sum() + fluid[-20:].sum()) == 0  # not the insula
    lengths = template.ventricle_velocity.norm(dim=0)
    assert float(lengths.max()) == pytest.approx(1, abs=1e-5)


def test_deformations_do_not_fold(brains):
    smallest = [float(jacobian_determinant(brain.displacement, BRAIN_FOV_MM).min()) for brain in brains]
    largest = [float(jacobian_determinant(brain.displacement, BRAIN_FOV_MM).max()) for brain in brains]
    assert min(smallest) > 0.05
    assert max(largest) > 1.3  # and they do deform


def test_both_templates_are_drawn(brains):
    assert {brain.template.name for brain in brains} == set(BRAIN_TEMPLATES)


def test_forcing_a_template_changes_nothing_else_of_the_patient():
    free, forced = (draw_brain(0, name) for name in ("colin27", "mni152"))
    assert torch.equal(free.matrix, forced.matrix)
    assert torch.equal(free.boundary_shift, forced.boundary_shift)
    assert free.ventricle_mm == forced.ventricle_mm
    assert forced.template.name == "mni152"


def test_the_mask_stays_off_the_border_and_labels_are_the_four(brains):
    for brain in brains:
        tissue = brain.on_grid(48)
        shell = tissue.mask.clone()
        shell[1:-1, 1:-1, 1:-1] = False
        assert not shell.any()
        labels = tissue.labels()
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) == {0, 1, 2, 3}
        assert torch.equal(labels > 0, tissue.mask)
        assert torch.equal((tissue.fractions.argmax(0) + 1)[tissue.mask], labels[tissue.mask].long())


def test_fractions_sum_to_one_inside(brains):
    tissue = brains[0].on_grid(48)
    assert torch.allclose(tissue.fractions.sum(0)[tissue.mask], torch.ones(1), atol=1e-4)


def test_volumes_are_plausible_vary_and_hardly_depend_on_the_grid(brains):
    reference = [brain.on_grid(64).volumes_ml() for brain in brains]
    assert all(1300 < volumes["brain_volume_ml"] < 2300 for volumes in reference)
    ventricles = torch.tensor([volumes["ventricle_volume_ml"] for volumes in reference])
    assert float(ventricles.std() / ventricles.mean()) > 0.1
    assert all(volumes["ventricle_volume_ml"] < volumes["csf_ml"] for volumes in reference)
    fine = brains[0].on_grid(96).volumes_ml()
    for name, value in reference[0].items():
        assert fine[name] == pytest.approx(value, rel=0.08), name


def test_ventricle_parameter_enlarges_the_ventricles(monkeypatch):
    volumes = []
    for length_mm in (-2.5, 6.0):
        monkeypatch.setattr("voxdiff.data.anatomy._VENTRICLE_RANGE_MM", (length_mm, length_mm))
        volumes.append(draw_brain(0).on_grid(64).volumes_ml()["ventricle_volume_ml"])
    assert volumes[1] > 1.4 * volumes[0]


def test_labels_of_two_grids_are_the_same_patient(brains):
    coarse, fine = (brains[0].on_grid(size).labels() for size in (32, 96))
    nearest = fine[1::3, 1::3, 1::3]  # the centre of every third voxel of 96 is the centre of a voxel of 32
    assert float((coarse == nearest).float().mean()) > 0.93
    both = (coarse > 0) & (nearest > 0)
    assert float((coarse == nearest)[both].float().mean()) > 0.75
