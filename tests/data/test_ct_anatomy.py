import pytest
import torch

from voxdiff.data.ct_anatomy import CT_FOV_MM, ORGANS, draw_ct, load_ct_template
from voxdiff.data.deformation import jacobian_determinant, voxel_centres


@pytest.fixture(scope="module")
def abdomens():
    return [draw_ct(seed) for seed in range(4)]


def test_deformations_do_not_fold(abdomens):
    determinants = [jacobian_determinant(abdomen.displacement, CT_FOV_MM) for abdomen in abdomens]
    assert min(float(determinant.min()) for determinant in determinants) > 0.2
    assert max(float(determinant.max()) for determinant in determinants) > 1.2


def test_hounsfield_units_of_the_organs_are_those_of_the_clinic(abdomens):
    for abdomen in abdomens:
        image, organs = abdomen.scan(64), abdomen.organ_labels(64)
        assert float(image.min()) == -1000
        assert float(image.max()) <= 2500
        assert torch.equal(image, image.round())
        medians = {organ: float(image[organs == index + 1].median()) for index, organ in enumerate(ORGANS)}
        assert 20 < medians["liver"] < 130
        assert medians["bone"] > 120
        assert medians["lung"] < -300
        assert -20 < medians["muscle"] < 90
        assert float(image[:, [0, -1]].max()) == -1000  # air before and behind


def test_the_table_is_gone():
    template = load_ct_template()
    solid = template.hounsfield[0] > -700
    # The patient lies on fat about 20 mm thick; the table of the source is at 13 <= y < 20 beside the midline too.
    beside = torch.cat([solid[:25, 13:20], solid[-25:, 13:20]])
    assert not beside.any()
    assert solid[50:70, 20:30].any()


def test_every_subject_is_scanned_over_the_same_length(abdomens):
    z = voxel_centres(64, CT_FOV_MM)[2]
    for abdomen in abdomens:
        image = abdomen.scan(64)
        assert float(image[z.abs() > 156].max()) == -1000
        for end in (-153.0, 153.0):
            assert float((image[z == end] > -200).float().mean()) > 0.2


def test_labels_and_volumes(abdomens):
    labels = abdomens[0].organ_labels(64)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == set(range(len(ORGANS) + 1))
    factors = [abdomen.factors(64) for abdomen in abdomens]
    assert all(600 < values["liver_ml"] < 1600 for values in factors)
    assert all(15_000 < values["body_volume_ml"] < 35_000 for values in factors)
    assert factors[0]["liver_ml"] == pytest.approx(float((labels == 1).sum()) * 0.216)
    assert abdomens[0].factors(96)["liver_ml"] == pytest.approx(factors[0]["liver_ml"], rel=0.05)


def test_the_patient_does_not_depend_on_the_grid(abdomens):
    coarse, fine = (abdomens[0].scan(size) for size in (32, 96))
    downsampled = torch.nn.functional.avg_pool3d(fine[None], 3)[0]
    assert float((coarse - downsampled).abs().mean()) < 25
    assert float((abdomens[1].scan(32) - downsampled).abs().mean()) > 60
