import nibabel as nib
import numpy as np
import pytest

from voxdiff.metrics.sections.subgroups import find_subgroups, one_sided
from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.volume_files import make_image


@pytest.fixture
def sets(tmp_path):
    """Three men and two women among the reals; two men and one of another value among the synthetic ones."""
    found = []
    for name, values in (("real", "MFMFM"), ("synthetic", "MOM")):
        (tmp_path / name).mkdir()
        rows = [f"{place}.nii.gz,{value}" for place, value in enumerate(values)]
        for place in range(len(values)):
            voxels = np.full((4, 4, 4), 0.1 * place + 0.1, np.float32)
            nib.save(make_image(voxels, np.eye(4), unit="a.u."), tmp_path / name / f"{place}.nii.gz")
        (tmp_path / name / "metadata.csv").write_text("file_name,sex\n" + "\n".join(rows))
        found.append(VolumeSet.open(tmp_path / name))
    return found


def test_values_of_both_sets_are_subgroups(sets):
    assert find_subgroups("sex", *sets) == {"M": ([0, 2, 4], [0, 2])}


def test_values_of_one_set_are_named_with_their_counts(sets):
    women, others = one_sided("sex", *sets)
    assert "sex F has 2 of the 5 real and 0 of the 3 synthetic" in women
    assert "sex O has 0 of the 5 real and 1 of the 3 synthetic" in others
    assert one_sided("sex", sets[0], sets[0]) == []
