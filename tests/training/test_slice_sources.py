import nibabel as nib
import numpy as np
import pytest
import torch
from slice_sources import AFFINE, MASK_VALUES, make_slice_source, write_pairs
from training_runs import truncate

from voxdiff.data.brain_masks import BRAIN_MASK_VALUES, brain_mask_labels
from voxdiff.data.cohort import CohortDataset
from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.training.slice_sources import cohort_slice_source, file_slice_source, mask_on_model_grid
from voxdiff.volumes import VolumeProcessor

MINMAX = VolumeProcessor(intensity="minmax")
ENCODER = MaskEncoder(MASK_VALUES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "data", ["a", "b", "c"])
    return tmp_path / "data"


def source_of(folder, processor=MINMAX, mask_values=MASK_VALUES, **options):
    defaults = {"image_column": "image", "mask_column": "mask", "split": None, "unit": None, "skip_bad_files": False}
    return file_slice_source(
        str(folder), processor, mask_values, **{**defaults, "cache_dir": folder.parent / "cache", **options}
    )


def labels_of(folder, name):
    return np.asarray(nib.load(folder / f"{name}_mask.nii.gz").dataobj)


def save_mask(folder, name, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), folder / f"{name}_mask.nii.gz")


def test_brains_with_tumours(cache):
    source = cohort_slice_source("flair", (32, 32, 24), cache, num_subjects=2, split="val")
    cohort = CohortDataset(2, split="val", size=32, contrasts=("flair",), lesions=True, cache_dir=cache)
    item, subject = source[1], cohort[1]
    assert torch.allclose(item["image"], subject["flair"][..., 4:28] * 2 - 1, atol=1e-6)
    expected = brain_mask_labels(subject["tissue"], subject["lesion"])[0, ..., 4:28]
    assert torch.equal(item["mask"], expected.to(torch.int16))
    assert set(item["mask"].unique().tolist()) == {0, 1, 2, 3, 4}
    assert source.mask_values == BRAIN_MASK_VALUES
    assert source.subject_ids == [subject["subject_id"] for subject in cohort]
    assert (len(source), source.processor.spacing) == (2, (6.5,) * 3)


def test_ct_with_organs(cache):
    source = cohort_slice_source("ct", (16, 16, 16), cache, num_subjects=2, split="train")
    subject = CohortDataset(2, size=16, modality="ct", cache_dir=cache)[0]
    assert torch.allclose(source.image(0), (subject["ct"] / 1000).clamp(-1, 1), atol=1e-6)
    assert torch.equal(source.mask(0), subject["organs"][0].to(torch.int16))
    assert source.mask_values == pytest.approx({label: 2 * label / 9 - 1 for label in range(10)})
    assert source.processor.unit == "HU"
    assert len(set(source.keys)) == 2


def test_files_on_their_own_grid(folder):
    source, left_out = source_of(folder)
    assert left_out == []
    assert source.subject_ids == ["a", "b", "c"]
    assert (source.processor.size, source.processor.spacing) == ((8, 8, 6), (2.0, 2.0, 3.0))
    item = source[1]
    assert item["image"].shape == (1, 8, 8, 6)
    assert (item["image"].min(), item["image"].max()) == (-1, 1)
    assert np.array_equal(item["mask"].numpy(), labels_of(folder, "b"))
    assert item["mask"].dtype == torch.int16


def test_files_of_a_niftifolder(folder):
    train = folder / "train"
    train.mkdir()
    for file in folder.glob("*.nii.gz"):
        file.rename(train / file.name)
    rows = ["flair_file_name,seg_file_name,subject_id", *(f"{n}_image.nii.gz,{n}_mask.nii.gz,p-{n}" for n in "ba")]
    (train / "metadata.csv").write_text("\n".join(rows))
    source, _ = source_of(folder, image_column="flair", mask_column="seg")
    assert source.subject_ids == ["p-b", "p-a"]
    assert np.array_equal(source.mask(0).numpy(), labels_of(train, "b"))


def test_a_mask_follows_its_volume_to_any_grid(folder):
    labels = labels_of(folder, "a")
    source, _ = source_of(folder, VolumeProcessor(intensity="minmax", size=(4, 6, 6), spacing=(2, 2, 3)))
    assert np.array_equal(source.mask(0).numpy(), labels[2:6, 1:7])
    fine, _ = source_of(folder, VolumeProcessor(intensity="minmax", size=(16, 16, 12), spacing=(1, 1, 1.5)))
    assert np.array_equal(fine.mask(0).numpy(), labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    coarse, _ = source_of(folder, VolumeProcessor(intensity="minmax", spacing=(4, 4, 6)))
    assert set(coarse.mask(0).unique().tolist()) <= set(MASK_VALUES)


def test_a_mask_lies_where_its_affine_says(folder):
    image = folder / "a_image.nii.gz"
    expected = labels_of(folder, "a")
    turned = np.diag([-2.0, 2.0, 3.0, 1.0])
    turned[0, 3] = 14.0
    save_mask(folder, "turned", expected[::-1], turned)
    cropped = AFFINE.copy()
    cropped[:3, 3] = (2.0, 2.0, 6.0)
    save_mask(folder, "cropped", expected[1:, 1:, 2:], cropped)
    halved = np.diag([1.0, 1.0, 1.5, 1.0])
    halved[:3, 3] = (-0.5, -0.5, -0.75)
    save_mask(folder, "halved", expected.repeat(2, 0).repeat(2, 1).repeat(2, 2), halved)
    for name in ("turned", "cropped", "halved"):
        mask = mask_on_model_grid(folder / f"{name}_mask.nii.gz", image, MINMAX, ENCODER)
        assert np.array_equal(mask.numpy(), expected)
    cropped[:3, 3] = (100.0, 0.0, 0.0)
    save_mask(folder, "far", expected, cropped)
    with pytest.raises(ValueError, match=r"far_mask.nii.gz' lies beside its volume; repair the affine"):
        mask_on_model_grid(folder / "far_mask.nii.gz", image, MINMAX, ENCODER)


def test_the_lowest_label_is_outside_the_mask(folder):
    save_mask(folder, "small", labels_of(folder, "a")[:6].astype(np.int16) - 1)
    encoder = MaskEncoder({-1: -2.0, 0: -1.0, 1: 1.0})
    mask = mask_on_model_grid(folder / "small_mask.nii.gz", folder / "a_image.nii.gz", MINMAX, encoder)
    assert (mask[6:] == -1).all()
    assert (mask.max(), mask.shape) == (1, (8, 8, 6))


def test_an_unknown_label_is_an_error_or_left_out(folder):
    labels = labels_of(folder, "b")
    labels[0, 0, 0] = 9
    save_mask(folder, "b", labels)
    with pytest.raises(ValueError, match=r"b_mask.nii.gz' holds the label 9, .* its labels are 0, 1, 2"):
        source_of(folder)
    truncate(folder / "c_mask.nii.gz")
    source, left_out = source_of(folder, skip_bad_files=True)
    assert source.subject_ids == ["a"]
    assert (len(source), len(source.keys)) == (1, 1)
    assert np.array_equal(source.mask(0).numpy(), labels_of(folder, "a"))
    assert ["b: " in left_out[0], "c: " in left_out[1]] == [True, True]
    truncate(folder / "a_mask.nii.gz")
    with pytest.raises(ValueError, match="None of the 3 masks can be used"):
        source_of(folder, skip_bad_files=True)


def test_a_changed_mask_has_another_key(folder):
    before = source_of(folder)[0].keys
    save_mask(folder, "a", np.zeros((8, 8, 6), np.uint8))
    after = source_of(folder)[0].keys
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_mistakes_are_one_sentence(folder, cache):
    with pytest.raises(ValueError, match=r"The cohort is 'mr'; choose one of t1, .*, ct"):
        cohort_slice_source("mr", (16, 16, 16), cache, num_subjects=1, split="train")
    with pytest.raises(ValueError, match="give 2 to 256 different labels"):
        source_of(folder, mask_values={0: 1.0})
    write_pairs(folder, ["d"], affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match="different voxel sizes; give --spacing"):
        source_of(folder)


def test_a_source_gives_what_its_parts_do():
    source = make_slice_source(8, 8, 6)
    assert torch.equal(source[2]["image"], source.image(2))
    assert torch.equal(source[2]["mask"], source.mask(2))
