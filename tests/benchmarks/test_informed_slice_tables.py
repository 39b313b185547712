import numpy as np
import pytest
from informed_slice_measures import SLICES
from informed_slice_tables import compare_sets, comparison_table, set_values, values_table

from voxdiff.metrics.features import PLANES

VOLUMES = 12


def make_features(shift, seed):
    generator = np.random.default_rng(seed)
    return {plane: shift + generator.normal(size=(VOLUMES * SLICES, 3)) for plane in PLANES}


def make_record(similarity, *, paired=True):
    cases = [{"case": str(place), "jump": 1.0, "ms_ssim": similarity + 0.001 * place} for place in range(VOLUMES)]
    if not paired:
        cases = [{name: case[name] for name in ("case", "jump")} for case in cases]
    return {"cases": cases, "diversity": {"mean": 0.5, "low": 0.4, "high": 0.6}}


@pytest.fixture(scope="module")
def sets():
    records = {"IC": make_record(0.9), "baseline": make_record(0.8), "own slice": make_record(0.7)}
    features = {"IC": make_features(0.1, 1), "baseline": make_features(2.0, 2), "own slice": make_features(0.1, 3)}
    return records, features, make_features(0.0, 0)


def test_a_better_set_meets_the_paper_and_a_worse_one_does_not(sets):
    records, features, real = sets
    found = {entry["metric"]: entry for entry in compare_sets("flair", ("IC", "baseline"), records, features, real)}
    assert found["FID-A"]["paper"] == "2.07 - 12.96"
    assert found["FID-A"]["difference"]["high"] < 0 and found["FID-A"]["verdict"] == "as in the paper"
    assert (
        found["ms_ssim"]["difference"]["mean"] == pytest.approx(0.1) and "no direction" in found["ms_ssim"]["verdict"]
    )
    (worse,) = [
        entry
        for entry in compare_sets("flair", ("own slice", "baseline"), records, features, real)
        if entry["metric"] == "ms_ssim"
    ]
    assert worse["verdict"] == "the opposite of the paper"


def test_every_set_has_a_row_and_every_column(sets):
    records, features, real = sets
    records = records | {"baseline": make_record(0.8, paired=False)}
    values = {name: set_values(record, features[name], real) for name, record in records.items()}
    rows = values_table(values).splitlines()
    assert len(rows) == 2 + len(records) and "FID-S" in rows[0]
    assert values["IC"]["FID-A"]["mean"] < values["baseline"]["FID-A"]["low"]
    assert "| - " in rows[3]
    compared = compare_sets("flair", ("IC", "baseline"), records, features, real)
    assert "ms_ssim" not in [entry["metric"] for entry in compared]
    assert "as in the paper" in comparison_table(compared)
