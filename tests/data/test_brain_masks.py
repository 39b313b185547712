import numpy as np
import pytest
import torch

from voxdiff.data.brain_masks import BRAIN_MASK_VALUES, brain_mask_labels


def test_the_tumour_lies_over_the_brain():
    tissue = torch.tensor([[0, 1, 2, 3, 1, 0]], dtype=torch.uint8)
    lesion = torch.tensor([[0, 0, 1, 2, 3, 2]], dtype=torch.uint8)
    labels = brain_mask_labels(tissue, lesion)
    assert labels.tolist() == [[0, 4, 1, 2, 3, 2]]
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == set(BRAIN_MASK_VALUES)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_labels_as_files_hold_them(kind):
    tissue, lesion = (torch.from_numpy(np.array([values], kind)) for values in ([0, 1, 2], [0, 0, 3]))
    assert brain_mask_labels(tissue, lesion).tolist() == [[0, 4, 3]]


def test_mistakes_are_one_sentence():
    tissue = torch.ones(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), the lesion \(2, 3\); give maps of one grid"):
        brain_mask_labels(tissue, torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"holds the label 4; it may hold 0, 1, 2 and 3"):
        brain_mask_labels(tissue, 4 * tissue)
    with pytest.raises(ValueError, match=r"holds the label 1.5"):
        brain_mask_labels(tissue, 1.5 * tissue)
