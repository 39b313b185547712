import csv
import json

import nibabel as nib
import numpy as np
import pytest

from voxdiff.data import cohort_files
from voxdiff.data.cohort_files import write_cohort
from voxdiff.data.subject import make_subject
from voxdiff.volumes import intensity_unit, load_volume

SETTINGS = {"size": 16, "contrasts": ("t1", "t2"), "lesions": True}


def rows_of(metadata):
    with metadata.open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*.nii.gz")}


def test_files_hold_the_subjects_in_mm(tmp_path):
    metadata = write_cohort(tmp_path / "out", 2, "val", seed=3, **SETTINGS)
    assert metadata == tmp_path / "out" / "val" / "metadata.csv"
    row = rows_of(metadata)[1]
    subject = make_subject(10_000_004, **SETTINGS)
    assert row["subject_id"] == "sim-10000004"
    assert int(row["seed"]) == 10_000_004
    assert row["split"] == "val"
    assert row["template"] == subject.factors["template"]
    assert row["cohort_version"] == "synthetic_brain_v0"
    assert row["simulated"] == "True"
    assert float(row["ventricle_volume_ml"]) == pytest.approx(subject.factors["ventricle_volume_ml"], abs=1e-3)
    assert float(row["lesion_radius_mm"]) == pytest.approx(subject.factors["lesion_radius_mm"], abs=1e-3)
    for name, values in {**subject.images, **subject.labels}.items():
        image = nib.load(metadata.parent / row[f"{name}_file_name"])
        assert np.allclose(image.get_fdata(), values.numpy(), atol=1e-6), name
        assert np.allclose(image.get_sform(), subject.affine)
        assert np.allclose(image.get_qform(), subject.affine)
        assert int(image.header["sform_code"]) > 0
        assert int(image.header["qform_code"]) > 0
        assert image.header.get_xyzt_units()[0] == "mm"
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.get_data_dtype() == (np.int16 if name in subject.images else np.uint8)
        assert b"simulated" in image.header.extensions[0].get_content()
        assert intensity_unit(image) == ("a.u." if name in subject.images else "label")
        load_volume(metadata.parent / row[f"{name}_file_name"])


def test_ct_files_are_in_hounsfield_units(tmp_path):
    metadata = write_cohort(tmp_path, 1, size=16, modality="ct")
    row = rows_of(metadata)[0]
    image = nib.load(metadata.parent / row["ct_file_name"])
    assert np.array_equal(image.get_fdata(), make_subject(0, size=16, modality="ct").images["ct"].numpy())
    assert intensity_unit(image) == "HU"
    assert row["cohort_version"] == "synthetic_ct_v0"
    assert float(row["liver_ml"]) > 0
    assert (metadata.parent / row["organs_file_name"]).exists()


def test_datasets_reads_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for split in ("train", "val", "test"):
        write_cohort(tmp_path / "out", 2, split, **SETTINGS)
    loaded = datasets.load_dataset("niftifolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 2, "validation": 2, "test": 2}
    row = loaded["validation"][0]
    assert row["subject_id"] == "sim-10000000"
    assert row["split"] == "val"
    assert isinstance(row["brain_volume_ml"], float)
    subject = make_subject(10_000_000, **SETTINGS)
    for name, values in {**subject.images, **subject.labels}.items():
        assert np.allclose(row[name].get_fdata(), values.numpy(), atol=1e-6)
        assert np.allclose(row[name].affine, subject.affine)


def test_an_interrupted_cohort_is_continued(tmp_path, monkeypatch):
    made = []

    def stop_at_third(seed, **settings):
        made.append(seed)
        if len(made) == 3:
            raise KeyboardInterrupt
        return make_subject(seed, **settings)

    monkeypatch.setattr(cohort_files, "make_subject", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, 4, **SETTINGS)
    assert not (tmp_path / "train" / "metadata.csv").exists()
    before = snapshot(tmp_path)
    assert len(before) == 2 * 4
    write_cohort(tmp_path, 4, **SETTINGS)
    after = snapshot(tmp_path)
    assert before.items() <= after.items()  # complete subjects were not written again
    assert made == [0, 1, 2, 2, 3]
    assert [row["seed"] for row in rows_of(tmp_path / "train" / "metadata.csv")] == ["0", "1", "2", "3"]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_kill_within_a_subject_leaves_no_incomplete_subject(tmp_path, monkeypatch):
    save, saved = nib.save, []

    def fail_at_second(image, path):
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(cohort_files.nib, "save", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, 1, **SETTINGS)
    assert not list(tmp_path.rglob("sim-*.json"))
    write_cohort(tmp_path, 1, **SETTINGS)
    assert len(saved) == 2 + 4  # the whole subject is written again


def test_a_lost_file_is_made_again(tmp_path):
    write_cohort(tmp_path, 2, **SETTINGS)
    before = snapshot(tmp_path)
    lost = tmp_path / "train" / "sim-00000001_t2.nii.gz"
    lost.unlink()
    write_cohort(tmp_path, 2, **SETTINGS)
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    kept = [path for path in before if "sim-00000000" in path.name]
    assert all(before[path] == after[path] for path in kept)


def test_a_cohort_grows(tmp_path):
    write_cohort(tmp_path, 1, **SETTINGS)
    before = snapshot(tmp_path)
    finished = []
    write_cohort(tmp_path, 3, **SETTINGS, on_subject=lambda: finished.append(1))
    assert before.items() <= snapshot(tmp_path).items()
    assert len(rows_of(tmp_path / "train" / "metadata.csv")) == len(finished) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 18}, "begun with size 16 and 18 is asked"),
        ({"contrasts": ("t1",)}, r"begun with contrasts \['t1', 't2'\]"),
        ({"lesions": False}, "begun with lesions True"),
        ({"seed": 5}, "begun with seed 0 and 5"),
        ({"template": "mni152"}, "begun with template None"),
        ({"modality": "ct", "contrasts": ("ct",), "lesions": False}, "begun with cohort_version 'synthetic_brain_v0'"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(tmp_path, changed, message):
    write_cohort(tmp_path, 1, **SETTINGS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        write_cohort(tmp_path, 1, **{**SETTINGS, **changed})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_splits_may_differ_in_seed_and_template(tmp_path):
    write_cohort(tmp_path, 1, size=16, template="mni152")
    write_cohort(tmp_path, 1, "test", size=16, template="colin27", seed=4)
    recorded = json.loads((tmp_path / "cohort.json").read_text())
    assert recorded["simulated"] is True
    assert recorded["splits"] == {
        "train": {"seed": 0, "template": "mni152"},
        "test": {"seed": 4, "template": "colin27"},
    }


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty and holds no cohort"):
        write_cohort(tmp_path, 1, **SETTINGS)
    with pytest.raises(ValueError, match="is a file"):
        write_cohort(tmp_path / "thesis.txt", 1, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("out", 0), "at least 1"), (("out", 1, "dev"), "'dev'")],
)
def test_bad_input_writes_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_cohort(tmp_path / arguments[0], *arguments[1:])
    assert not list(tmp_path.iterdir())
