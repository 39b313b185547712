import json
import shutil

import pytest
import torch

from voxdiff import CohortDataset
from voxdiff.metrics.anchors import gaussian_blur
from voxdiff.metrics.extractors.cohort import load_cohort_extractor
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.shipped import find_shipped


@pytest.fixture(scope="module")
def subject():
    return CohortDataset(1, split="test", size=64, contrasts=("t1", "t2"))[0]


def contrast_probability(extractor, images, contrast):
    found = extractor(images)
    places = [place for place, name in enumerate(extractor.classes) if name.startswith(contrast + " ")]
    return found.probabilities[:, places].sum(1).mean().item()


def test_the_shipped_networks_tell_contrasts_apart(subject):
    volumes = load_extractor("cohort-3d")
    slices = load_extractor("cohort-2d")
    for contrast in ("t1", "t2"):
        assert contrast_probability(volumes, subject[contrast][None], contrast) > 0.6
        middle = subject[contrast][0, :, :, 24:40].movedim(2, 0)[:, None]
        assert contrast_probability(slices, middle, contrast) > 0.6


def test_features_follow_a_blur(subject):
    extractor = load_extractor("cohort-3d")
    sharp, soft, softer = (
        extractor(volume[None]).values
        for volume in (subject["t1"], gaussian_blur(subject["t1"], 0.7), gaussian_blur(subject["t1"], 1.5))
    )
    assert sharp.shape == (1, extractor.num_features)
    assert 0 < (sharp - soft).norm() < (sharp - softer).norm()


def test_a_volume_does_not_depend_on_its_batch(subject):
    extractor = load_extractor("cohort-3d")
    both = torch.stack([subject["t1"], subject["t2"]])
    torch.testing.assert_close(extractor(both).values[:1], extractor(both[:1]).values, atol=1e-5, rtol=1e-5)


def test_other_grids_are_brought_to_its_own():
    extractor = load_extractor("cohort-2d")
    assert extractor(torch.rand(2, 1, 96, 80)).values.shape == (2, extractor.num_features)


def test_settings_pin_the_weights(tmp_path):
    shipped = find_shipped("cohort-2d", "model.safetensors")
    settings = load_extractor("cohort-2d").settings()
    assert len(settings["sha256"]) == 64 and "simulated" in settings["note"]
    json.dumps(settings)
    shutil.copytree(shipped, tmp_path / "copy")
    assert load_cohort_extractor("cohort-2d", tmp_path / "copy").settings() == settings


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_cohort_extractors"):
        load_cohort_extractor("cohort-3d", tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    shutil.copytree(find_shipped("cohort-2d", "model.safetensors"), tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "widths": [16, 32, 64, 128]}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_cohort_extractor("cohort-2d", tmp_path / "copy")
