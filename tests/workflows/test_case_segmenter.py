import numpy as np
import pytest
from resampling_runs import ShownPipeline, make_case, make_cases

from voxdiff.metrics.downstream import TrainingSettings
from voxdiff.metrics.segmentation import dice
from voxdiff.workflows.case_segmenter import CaseSegmenter, train_case_segmenter
from voxdiff.workflows.masked_cases import MaskedCase

PROCESSOR = ShownPipeline().volume_processor
SETTINGS = TrainingSettings(steps=25)


@pytest.fixture(scope="module")
def segmenter():
    cases = [*make_cases(4, brightness=0.5), MaskedCase("m", None, make_case("m").mask)]
    return train_case_segmenter(cases, PROCESSOR, settings=SETTINGS)


def test_finds_the_brain_on_the_image_s_own_grid(segmenter):
    case = make_case("new", seed=50, shape=(14, 16, 12), brightness=0.5)
    found = segmenter(case.image)
    assert found.shape == (14, 16, 12) and found.dtype == np.uint8
    assert dice(found, np.asarray(case.mask.dataobj), [1, 4]) > 0.6


def test_a_saved_segmenter_finds_the_same_and_has_the_same_fingerprint(segmenter, tmp_path):
    segmenter.save(tmp_path / "segmenter")
    loaded = CaseSegmenter.load(tmp_path / "segmenter")
    assert loaded.fingerprint == segmenter.fingerprint
    image = make_case("new", seed=50, brightness=0.5).image
    np.testing.assert_array_equal(loaded(image), segmenter(image))


def test_other_weights_have_another_fingerprint(segmenter):
    other = train_case_segmenter(make_cases(2), PROCESSOR, settings=TrainingSettings(steps=1))
    assert other.fingerprint != segmenter.fingerprint


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no segmenter\.json"):
        CaseSegmenter.load(tmp_path)
    with pytest.raises(ValueError, match="0 of the 1 cases have an image"):
        train_case_segmenter([MaskedCase("m", None, make_case("m").mask)], PROCESSOR)
