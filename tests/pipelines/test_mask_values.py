import numpy as np
import pytest
import torch

from voxdiff.pipelines.mask_values import MaskEncoder, linear_mask_values


def test_labels_become_the_values_of_the_table():
    encoder = MaskEncoder({4: -0.5, 0: -1.0, 1: 0.5})
    assert encoder.labels == (0, 1, 4) and encoder.background == 0
    labels = np.array([[0, 4], [1, 0]])
    for kind in (labels, labels.astype(np.float32), torch.from_numpy(labels).short()):
        assert torch.equal(encoder.encode(kind), torch.tensor([[-1.0, -0.5], [0.5, -1.0]]))
    assert torch.equal(encoder.encode_index(encoder.index(labels)), encoder.encode(labels))


def test_the_table_survives_json():
    encoder = MaskEncoder({-1: -5 / 3, 10: 1.0, 2: 0.0})
    assert encoder.to_dict() == {"-1": -5 / 3, "2": 0.0, "10": 1.0}
    assert MaskEncoder(encoder.to_dict()).values == encoder.values


@pytest.mark.parametrize("label", [3, -1, 0.5, float("nan"), 5])
def test_an_unknown_label_raises(label):
    with pytest.raises(ValueError, match=rf"The mask holds the label {label:g}, .* its labels are 0, 1, 4"):
        MaskEncoder({0: -1.0, 1: 0.0, 4: 1.0}).encode(np.array([0, 1, label, 4]))


def test_the_published_tables():
    assert linear_mask_values(4) == {0: -1.0, 1: -0.5, 2: 0.0, 3: 0.5, 4: 1.0}
    assert linear_mask_values(3, outside=True)[-1] == pytest.approx(-5 / 3)
    assert MaskEncoder(linear_mask_values(3, outside=True)).background == -1
    with pytest.raises(ValueError, match="The highest label is 0"):
        linear_mask_values(0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({0: 1.0}, "give 2 to 256 different labels"),
        ({1: 0.0, "1": 1.0, 0: 0.0}, "different labels"),
        ({0: float("nan"), 1: 1.0}, "finite value"),
        ({0: None, 1: 1.0}, "finite value"),
        ([0.0, 1.0], "give a mapping of label -> value"),
        ({0.5: 0.0, 1: 1.0}, "the label 0.5; give whole numbers"),
        ({"brain": 0.0, 1: 1.0}, "the label 'brain'"),
    ],
)
def test_impossible_tables_raise(table, message):
    with pytest.raises(ValueError, match=message):
        MaskEncoder(table)
