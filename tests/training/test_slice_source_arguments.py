import pytest
from slice_sources import MASK_VALUES, write_pairs

from voxdiff.training.slice_source_arguments import SliceSourceArguments, parse_mask_values


def test_the_cohort(tmp_path):
    arguments = SliceSourceArguments(cohort="t2", resolution="16,16,8", num_subjects=2, split="test")
    source, left_out = arguments.make_source(tmp_path)
    assert (len(source), source.processor.size, left_out) == (2, (16, 16, 8), [])
    assert source.subject_ids[0] == "sim-20000000"
    assert not arguments.are_encoded
    assert arguments.describe(2).startswith("2 subjects of voxdiff's simulated cohort (t2 with masks of tumours)")
    assert "organs" in SliceSourceArguments(cohort="ct", resolution="16").describe(2)


def test_files(tmp_path):
    write_pairs(tmp_path / "data", ["a", "b"])
    arguments = SliceSourceArguments(
        train_data_dir=str(tmp_path / "data"), mask_values="2", resolution="4", intensity="percentile", low=1.0
    )
    source, left_out = arguments.make_source(tmp_path / "cache")
    assert (left_out, source.subject_ids) == ([], ["a", "b"])
    assert source.mask_values == MASK_VALUES
    assert (source.processor.size, source.processor.low) == ((4, 4, 4), 1.0)
    assert arguments.describe(2) == "2 subjects of the folder `data`"


def test_the_latents_of_an_earlier_run(tmp_path):
    arguments = SliceSourceArguments(latents_dir=str(tmp_path / "latents"))
    assert arguments.are_encoded
    assert arguments.describe(3) == "3 subjects of the folder `latents`"


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("2", {0: -1.0, 1: 0.0, 2: 1.0}),
        ("0=-1, 4=-0.5,2=1e-1", {0: -1.0, 4: -0.5, 2: 0.1}),
        ("-1=-2,0=0", {-1: -2.0, 0: 0.0}),
    ],
)
def test_mask_values(text, table):
    assert parse_mask_values(text) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0=-1,tumour=1", "has 'tumour=1'; write LABEL=VALUE"),
        ("0=-1,1", "has '1'; write LABEL=VALUE"),
        ("0=-1,0=1", "has the label 0 twice"),
        ("0", "highest label is 0"),
    ],
)
def test_wrong_mask_values(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mask_values(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give the training data: --train_data_dir DIR with NIfTI files"),
        ({"train_data_dir": "x", "cohort": "ct"}, "were both given"),
        ({"cohort": "mr", "resolution": "16"}, "--cohort is 'mr'; choose one of t1, t1gd, t2, flair, ct"),
        ({"cohort": "ct"}, "give --resolution, such as 64"),
        ({"cohort": "ct", "resolution": "16", "mask_values": "3"}, "--mask_values belongs to --train_data_dir"),
        ({"cohort": "ct", "resolution": "16", "skip_bad_files": True}, "--skip_bad_files belongs to --train_data_dir"),
        ({"train_data_dir": "x", "num_subjects": 3, "mask_values": "3"}, "--num_subjects belongs to --cohort"),
        ({"train_data_dir": "x"}, "Give --mask_values: the highest label of the masks"),
        ({"latents_dir": "x", "resolution": "16"}, "--resolution was decided when the latents were encoded"),
    ],
)
def test_contradictions_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        SliceSourceArguments(**options)


def test_a_unit_belongs_to_a_window(tmp_path):
    with pytest.raises(ValueError, match="--unit HU belongs to volumes in HU"):
        SliceSourceArguments(train_data_dir="x", mask_values="3", unit="HU").make_source(tmp_path)
