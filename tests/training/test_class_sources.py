import pytest
import torch
from training_runs import write_volumes

from voxdiff.training.class_sources import cohort_source, file_sources
from voxdiff.volumes import VolumeProcessor

MINMAX = VolumeProcessor(intensity="minmax", size=(8, 8, 8))
OPTIONS = {"split": None, "class_column": None, "scalar_names": [], "unit": None, "skip_bad_files": False}


@pytest.fixture
def folder(tmp_path):
    write_volumes(tmp_path, ["a.nii.gz", "b.nii.gz"], size=(8, 8, 8))
    return tmp_path


def sources_of(folder, wanted=((None, MINMAX),), **options):
    options = {**OPTIONS, "cache_dir": folder / "cache", **options}
    return file_sources(str(folder), "image", wanted, **options)[0]


def test_a_changed_file_has_another_key(folder):
    (before,) = sources_of(folder)
    write_volumes(folder, ["a.nii.gz"], size=(8, 8, 8), high=2.0)
    (after,) = sources_of(folder)
    assert [old == new for old, new in zip(before.keys, after.keys, strict=True)] == [False, True]


def test_a_source_for_each_grid(folder):
    flat = VolumeProcessor(intensity="minmax", size=(8, 8, 4))
    sources = sources_of(folder, [(None, MINMAX), (None, flat)])
    assert [source.volume(1).shape for source in sources] == [(1, 8, 8, 8), (1, 8, 8, 4)]
    assert torch.equal(sources[0].volume(0)[..., 2:6], sources[1].volume(0))
    assert all(source.processor.spacing == (3.0, 3.0, 3.0) for source in sources)


def test_voxel_sizes_of_a_source_differ_only_under_a_spacing(folder):
    write_volumes(folder, ["b.nii.gz"], size=(8, 8, 8), spacing=6.0)
    with pytest.raises(ValueError, match="The volumes have different voxel sizes; give --spacing"):
        sources_of(folder)
    (source,) = sources_of(folder, [(None, VolumeProcessor(intensity="minmax", size=(8, 8, 8), spacing=(3, 3, 3)))])
    assert source.processor.spacing == (3.0, 3.0, 3.0)


def test_a_volume_is_prepared_once(folder, monkeypatch):
    (before,) = sources_of(folder)
    monkeypatch.setattr(VolumeProcessor, "preprocess", None)
    (after,) = sources_of(folder)
    assert torch.equal(before.volume(1), after.volume(1))


@pytest.mark.parametrize(("field", "known"), [("5", {"age": 5.0}), ("", {}), ("nan", {}), ("0", {"age": 0.0})])
def test_what_is_known_of_a_volume(folder, field, known):
    (folder / "metadata.csv").write_text(f"image_file_name,age\na.nii.gz,{field}\nb.nii.gz,7.5\n")
    (source,) = sources_of(folder, scalar_names=["age"])
    assert list(source.scalars) == [known, {"age": 7.5}]


@pytest.mark.parametrize(("field", "message"), [("old", "is 'old' for a volume"), ("inf", "is infinite for a volume")])
def test_a_scalar_that_is_no_number(folder, field, message):
    (folder / "metadata.csv").write_text(f"image_file_name,age\na.nii.gz,{field}\nb.nii.gz,7.5\n")
    with pytest.raises(ValueError, match=f"The scalar age {message}"):
        sources_of(folder, scalar_names=["age"])


def test_the_cohort_spans_its_field_of_view_along_the_longest_side(tmp_path):
    source = cohort_source(
        "mr", (16, 8, 16), tmp_path, num_subjects=1, split="test", scalar_names=["csf_ml", "liver_ml"]
    )
    assert source.processor.spacing == (13.0, 13.0, 13.0)
    assert source.volume(0).shape == (1, 16, 8, 16)
    assert [set(known) for known in source.scalars] == [{"csf_ml"}]
    assert source.keys == ["synthetic_brain_v0/t1/sim-20000000"]
