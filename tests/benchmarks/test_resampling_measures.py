import numpy as np
import pytest
import torch
from resampling_measures import counted, describe_nearness, edit_effects, measure_nearness, region_medians, spread

from voxdiff.metrics.copies import copy_distances


def test_the_spread_falls_where_all_volumes_are_alike():
    generator = np.random.default_rng(0)
    before = generator.normal(0.5, 0.1, 40)
    found = spread(np.append(before, np.nan), np.append(0.5 + 0.2 * (before - 0.5), 0.3))
    assert found["n"] == 40 and found["before"] == pytest.approx(before.std(ddof=1))
    assert found["ratio"] == pytest.approx(0.2) and found["high"] < 0.5


def test_medians_are_of_the_region():
    volume = torch.zeros(1, 2, 2, 2)
    volume[0, 0] = 0.8
    mask = np.zeros((2, 2, 2), dtype=np.uint8)
    mask[0] = 4
    found = region_medians([volume], [mask], {"brain": (4,), "tumour": (1, 2, 3)})
    assert found["brain"][0] == pytest.approx(0.8) and np.isnan(found["tumour"][0])


def test_edits_change_the_inside():
    effects = edit_effects([0.2, 0.4], [0.1, 0.1])
    assert effects["inside"]["mean"] == pytest.approx(0.3) and effects["ratio"] == pytest.approx(3.0)


def test_a_copy_of_its_owner_is_found():
    generator = torch.Generator().manual_seed(0)
    references = {f"s{place}": torch.rand(1, 16, 16, 16, generator=generator) for place in range(8)}
    heldout = copy_distances(
        [torch.rand(1, 16, 16, 16, generator=generator) for _ in range(6)], list(references.values())
    )
    volumes = [references["s0"] + 0.01, torch.rand(1, 16, 16, 16, generator=generator)]
    owners, donors = ["s0", "s1"], ["s2", "s3"]
    nearness = measure_nearness(volumes, owners, donors, references)
    found = describe_nearness(nearness, owners, donors, list(references), heldout)
    assert nearness.to_owner[0] < 0.01 < nearness.to_owner[1]
    assert found["copies"] == found["copies_of_owner"] == 1 and found["copies_of_donor"] == 0
    alone = measure_nearness(volumes, owners, [None, None], references)
    assert describe_nearness(alone, owners, [None, None], list(references), heldout)["to_donor"] is None


def test_calls_are_counted_while_watched():
    network = torch.nn.Linear(2, 2)
    with counted(network) as calls:
        network(torch.zeros(3, 2))
        network(torch.zeros(1, 2))
    network(torch.zeros(1, 2))
    assert calls.sizes == [3, 1] and calls.seconds > 0
