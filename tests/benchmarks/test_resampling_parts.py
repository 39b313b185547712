import numpy as np
import pytest
from resampling_parts import edits
from resampling_runs import ball_labels


def test_a_tumour_is_removed_or_moved_to_the_centre():
    labels = ball_labels(np.random.default_rng(0), (24, 24, 24))
    labels = np.where((labels == 1) & (np.arange(24)[:, None, None] < 14), 4, labels)  # off centre
    edited = edits(labels, (2.0, 2.0, 2.0), 8.0)
    assert set(np.unique(edited["removed"])) == {0, 4}
    assert (edited["removed"] > 0).sum() == (labels > 0).sum()
    centre = np.argwhere(labels > 0).mean(axis=0)
    before, after = (
        np.linalg.norm(np.argwhere(values == 1).mean(axis=0) - centre) for values in (labels, edited["moved"])
    )
    assert before - after == pytest.approx(4.0, abs=0.5)  # 8 mm
