from dataclasses import replace

from voxdiff.metrics.protocol import Protocol, package_versions, protocol_differences, protocol_hash


def make_protocol(**changes):
    settings = {
        "preparation": {"intensity": "window", "low": 0.0, "high": 1.0, "unit": "a.u."},
        "grid": [8, 8, 8],
        "spacing_mm": [2.0, 2.0, 2.0],
        "num_real": 10,
        "num_synthetic": 10,
        "num_train": None,
        "real_sha256": "a" * 64,
        "train_sha256": None,
        "masks_sha256": None,
        "labels_sha256": None,
        "extractors": [{"name": "toy", "sha256": "b" * 64}],
        "slices_per_plane": 16,
        "ms_ssim": {"scales": 1, "kernel_size": 5, "sigma": 1.0, "data_range": 1.0, "pairs": 200},
        "blur_sigma": 1.0,
        "sections": ["unpaired"],
        "options": {},
        "seed": 0,
    }
    return Protocol(**{**settings, **changes})


def test_hash_moves_with_every_setting():
    first = make_protocol()
    assert protocol_hash(first.to_dict()) == protocol_hash(make_protocol().to_dict())
    changed = [
        {"num_synthetic": 11},
        {"real_sha256": "c" * 64},
        {"extractors": [{"name": "toy", "sha256": "c" * 64}]},
        {"seed": 1},
        {"preparation": {"intensity": "percentile"}},
        {"version": 2},
    ]
    hashes = {protocol_hash(replace(first, **change).to_dict()) for change in changed}
    assert len(hashes) == len(changed) and protocol_hash(first.to_dict()) not in hashes


def test_differences_are_named():
    found = protocol_differences(make_protocol().to_dict(), make_protocol(seed=3, num_real=20).to_dict())
    assert found == ["num_real is 10 and 20", "seed is 0 and 3"]


def test_versions_name_what_computed():
    assert {"voxdiff", "torch", "numpy"} <= package_versions().keys()
