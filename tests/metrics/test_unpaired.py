import numpy as np
import pytest

from voxdiff.metrics.features import FeatureSet
from voxdiff.metrics.sections import unpaired

EXTRACTOR = {"name": "toy", "note": "trained on VGG"}


def features(number, dim=4, shift=0.0, seed=0, rows=1, classes=0):
    random = np.random.default_rng(seed)
    values = random.normal(size=(number * rows, dim)) + shift
    probabilities = random.dirichlet(np.ones(classes), number * rows) if classes else None
    return FeatureSet(values, np.repeat(np.arange(number), rows), probabilities)


def measure(real, synthetic, plane=None, anchors=None):
    return unpaired.measure_unpaired(EXTRACTOR, plane, real, synthetic, real, anchors or {})


def test_values_are_bounded_and_inside_their_intervals():
    data = measure(features(60), features(40, shift=0.2, seed=1, classes=3))
    row = data["rows"]["synthetic"]
    assert row["n_reference"] == 60 and row["n"] == 40
    for name, (least, most) in unpaired._BOUNDS.items():
        if name in row and "low" in row[name]:
            assert least <= row[name]["low"] <= row[name]["high"] <= most
    assert row["fid"]["value"] > 0.1 and "inception_score" in row


def test_a_shift_moves_distances_and_not_itself():
    near, far = (measure(features(80), features(80, shift=shift, seed=1))["rows"]["synthetic"] for shift in (0, 2))
    assert far["fid"]["low"] > near["fid"]["high"] and far["kid"]["low"] > near["kid"]["high"]
    assert far["precision"]["value"] < 0.5 < near["precision"]["value"]


def test_slices_have_distances_only_and_stay_together():
    real, synthetic = features(12, rows=6), features(12, rows=6, seed=1)
    row = measure(real, synthetic, plane="coronal")["rows"]["synthetic"]
    assert {"fid", "kid"} <= row.keys() and "precision" not in row and row["n"] == 12
    apart = FeatureSet(synthetic.values, np.arange(72))
    alone = unpaired._estimates(FeatureSet(real.values, np.arange(72)), apart, 0)
    assert alone["kid"]["value"] == pytest.approx(row["kid"]["value"])
    assert alone["kid"]["high"] != row["kid"]["high"]


def test_another_reference_for_the_anchors_gives_a_second_row():
    real, synthetic = features(20), features(14, seed=1)
    matched = synthetic.of_volumes(range(10))
    anchors = {"real": matched}
    data = unpaired.measure_unpaired(
        EXTRACTOR, None, real, synthetic, real.of_volumes(range(10)), anchors, matched=matched
    )
    assert list(data["rows"]) == [unpaired.SYNTHETIC, unpaired.SYNTHETIC_HALF, "real"]
    half = data["rows"][unpaired.SYNTHETIC_HALF]
    assert half["n_reference"] == half["n"] == 10 and half["fid"] == data["rows"]["real"]["fid"]


def test_without_anchors_the_floor_is_that_of_the_real_halves():
    real, synthetic = features(30), features(12, shift=2, seed=1)
    rows = measure(real, synthetic)["rows"]
    assert list(rows) == [unpaired.SYNTHETIC, unpaired.SYNTHETIC_HALF, "real"]
    for name in (unpaired.SYNTHETIC_HALF, "real"):
        assert (rows[name]["n_reference"], rows[name]["n"]) == (15, 12)
    assert rows["real"]["fid"]["value"] < rows[unpaired.SYNTHETIC_HALF]["fid"]["value"] / 2
    few = measure(features(13), synthetic)
    assert list(few["rows"]) == [unpaired.SYNTHETIC] and "needs 14 real volumes" in unpaired.markdown([few])
    assert "needs 14" not in unpaired.markdown([measure(real, synthetic)])


def test_few_volumes_are_warned_about_and_fewer_refused():
    assert any("rank-deficient" in warning for warning in measure(features(8, dim=9), features(8, dim=9))["warnings"])
    assert measure(features(150), features(150, seed=1))["warnings"] == []
    with pytest.raises(ValueError, match=r"synthetic set has 5 volume\(s\); give at least 7"):
        unpaired.check_number(5, "synthetic")
    with pytest.raises(ValueError, match=r"real set has 13 volume\(s\); give at least 14"):
        unpaired.check_halves(13)


def test_slices_are_warned_about_by_their_rank():
    warnings = measure(features(120, dim=300, rows=2), features(120, dim=300, rows=2, seed=1), plane="axial")[
        "warnings"
    ]
    assert any("rank-deficient" in warning and "240" in warning for warning in warnings)


def test_the_smallest_sets_have_all_statistics():
    row = measure(features(7, classes=2), features(7, seed=1, classes=2))["rows"]["synthetic"]
    assert all("low" in row[name] for name in unpaired.METRICS)


def test_markdown_names_extractor_plane_and_numbers():
    text = unpaired.markdown([measure(features(20), features(14, seed=1), plane="sagittal")])
    assert "toy, sagittal slices (FID-S)" in text and "Trained on VGG; 4 features" in text
    assert "| synthetic | 20, 14 |" in text
