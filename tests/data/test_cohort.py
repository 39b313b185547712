import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import voxdiff
from voxdiff.data import cohort
from voxdiff.data.cohort import SPLIT_SIZE, SPLITS, CohortDataset, make_subject, split_seeds


def counted(monkeypatch):
    calls = []

    def make(*args, **kwargs):
        calls.append(args)
        return make_subject(*args, **kwargs)

    monkeypatch.setattr(cohort, "make_subject", make)
    return calls


def assert_same_item(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name]


def test_splits_are_disjoint_for_every_admitted_seed():
    extremes = [
        seeds for split in SPLITS for seeds in (split_seeds(split, 5, 0), split_seeds(split, 5, SPLIT_SIZE - 5))
    ]
    whole = {split: split_seeds(split, SPLIT_SIZE, 0) for split in SPLITS}
    for split, seeds in whole.items():
        for other, others in whole.items():
            assert split == other or seeds.stop <= others.start or others.stop <= seeds.start
    assert len({seed for seeds in extremes for seed in seeds}) == 5 * len(extremes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 1), "'dev'; choose one of train, val, test"),
        (("train", 0), "0; ask for at least 1"),
        (("train", 2, SPLIT_SIZE - 1), "leaves the split's range"),
        (("val", 1, -1), "leaves the split's range"),
    ],
)
def test_ranges_that_leave_the_split_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_seeds(*arguments)
    with pytest.raises(ValueError, match=message):
        CohortDataset(arguments[1], split=arguments[0], seed=arguments[2] if len(arguments) > 2 else 0)


def test_items_are_the_subjects():
    data = CohortDataset(3, split="val", seed=7, size=32, contrasts=("t1", "flair"), lesions=True)
    assert len(data) == 3
    item = data[1]
    subject = make_subject(SPLITS["val"] + 8, size=32, contrasts=("t1", "flair"), lesions=True)
    assert set(item) == {"t1", "flair", "tissue", "lesion", "subject_id", "seed", "factors"}
    for name in ("t1", "flair"):
        assert item[name].shape == (1, 32, 32, 32)
        assert item[name].dtype == torch.float32
        assert torch.equal(item[name][0], subject.images[name])
    for name in ("tissue", "lesion"):
        assert item[name].dtype == torch.uint8
        assert torch.equal(item[name][0], subject.labels[name])
    assert item["seed"] == SPLITS["val"] + 8
    assert item["subject_id"] == "sim-10000008"
    assert item["factors"] == subject.factors


def test_ct_items_are_in_hounsfield_units():
    item = CohortDataset(1, size=32, modality="ct")[0]
    assert set(item) == {"ct", "organs", "subject_id", "seed", "factors"}
    assert torch.equal(item["ct"][0], make_subject(0, size=32, modality="ct").images["ct"])
    assert float(item["ct"].min()) == -1000


def test_memory_cache_is_lossless_and_simulates_once(monkeypatch):
    calls = counted(monkeypatch)
    data = CohortDataset(2, size=32)
    first = data[0]
    second = data[0]
    assert len(calls) == 1
    assert_same_item(first, second)
    first["t1"].zero_()
    first["tissue"].zero_()
    first["factors"].clear()
    assert_same_item(data[0], second)  # a caller cannot spoil the cache
    uncached = CohortDataset(2, size=32, cache=False)
    assert_same_item(uncached[0], second)
    uncached[0]
    assert len(calls) == 3


def test_disk_cache_is_lossless_and_outlives_the_dataset(monkeypatch, tmp_path):
    calls = counted(monkeypatch)
    settings = {"size": 32, "contrasts": ("t1", "t2"), "lesions": True, "cache_dir": tmp_path}
    first = CohortDataset(1, **settings)[0]
    assert_same_item(CohortDataset(1, **settings)[0], first)
    assert len(calls) == 1
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".safetensors"]  # no temporary files left
    for changed in ({"size": 16}, {"contrasts": ("t1",)}, {"lesions": False}, {"template": "mni152"}, {"seed": 1}):
        CohortDataset(1, **{**settings, **changed})[0]
    assert len(calls) == 6  # other settings never read what these wrote


def test_a_damaged_cache_file_is_named(tmp_path):
    CohortDataset(1, size=16, cache_dir=tmp_path)[0]
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"sim-00000000\.safetensors.*delete the file"):
        CohortDataset(1, size=16, cache_dir=tmp_path)[0]


def test_default_collation_and_iteration_work():
    data = CohortDataset(3, size=16)
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["t1"].shape == (3, 1, 16, 16, 16)
    assert batch["factors"]["ventricle_volume_ml"].shape == (3,)
    assert batch["seed"].tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        data[3]
    assert data[-1]["seed"] == 2


def test_other_processes_make_the_same_subject():
    code = "from voxdiff import make_subject; print(float(make_subject(4, size=16).images['t1'].double().sum()))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(printed.stdout) == pytest.approx(float(make_subject(4, size=16).images["t1"].double().sum()), rel=1e-5)


def test_public_names():
    assert voxdiff.CohortDataset is CohortDataset
    assert voxdiff.make_subject is make_subject
