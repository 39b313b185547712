import json

import pytest
import torch
from training_runs import truncate, write_volumes

from voxdiff.training.source_arguments import SourceArguments, parse_grids


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path):
    """Two CT and one MR volume with metadata."""
    train = tmp_path / "data" / "train"
    write_volumes(train, ["a.nii.gz"], size=(12, 12, 8), high=1.0)
    write_volumes(train, ["b.nii.gz", "c.nii.gz"], size=(12, 12, 8), low=-1000.0, high=500.0)
    rows = ["image_file_name,kind,age", "a.nii.gz,mr,50", "b.nii.gz,ct,", "c.nii.gz,ct,70"]
    (train / "metadata.csv").write_text("\n".join(rows))
    return tmp_path / "data"


def sources_of(tmp_path, **options):
    return SourceArguments(**options).make_sources(tmp_path)


def test_the_cohort_by_class_and_grid(cache):
    sources, left_out = sources_of(
        cache, cohort="mr,ct", num_subjects=2, grids="16;ct=16,16,8", scalar_columns="ventricle_volume_ml"
    )
    assert left_out == []
    assert [(source.class_name, source.processor.size) for source in sources] == [
        ("mr", (16, 16, 16)),
        ("ct", (16, 16, 16)),
        ("ct", (16, 16, 8)),
    ]
    assert [source.processor.spacing for source in sources] == [(13.0,) * 3, (24.0,) * 3, (24.0,) * 3]
    assert [source.processor.unit for source in sources] == ["a.u.", "HU", "HU"]
    whole, flat = (source.volume(1) for source in sources[1:])
    assert torch.allclose(flat, whole[..., 4:12], atol=1e-5)
    assert all(len(source) == 2 and list(source.scalars) == [{}, {}] for source in sources[1:])
    assert [set(known) for known in sources[0].scalars] == [{"ventricle_volume_ml"}] * 2
    assert len({key for source in sources[:2] for key in source.keys}) == 4


def test_one_class_is_no_class(cache):
    (source,), _ = sources_of(cache, cohort="t2", num_subjects=1, grids="16", split="val")
    assert source.class_name is None
    assert source.keys[0].endswith("/t2/sim-10000000")


def test_files_with_a_table_of_classes(folder, tmp_path):
    window = {"intensity": "window", "low": -1000, "high": 500}
    (tmp_path / "classes.json").write_text(json.dumps({"mr": {"intensity": "minmax"}, "ct": window}))
    sources, _ = sources_of(
        tmp_path,
        train_data_dir=str(folder),
        class_column="kind",
        classes=str(tmp_path / "classes.json"),
        scalar_columns="age",
        grids="8;ct=8,16,8",
    )
    assert [(source.class_name, source.processor.size, len(source)) for source in sources] == [
        ("mr", (8, 8, 8), 1),
        ("ct", (8, 8, 8), 2),
        ("ct", (8, 16, 8), 2),
    ]
    assert [source.processor.unit for source in sources] == ["a.u.", "HU", "HU"]
    assert all(source.processor.spacing == (3.0, 3.0, 3.0) for source in sources)
    assert [dict(known) for known in sources[1].scalars] == [{}, {"age": 70.0}]
    assert sources[2].volume(0).shape == (1, 8, 16, 8)
    assert sources[2].volume(0).min() >= -1
    assert "b.nii.gz" in sources[1].keys[0]


def test_files_without_classes_on_their_own_grid_and_bad_ones_left_out(folder, tmp_path):
    truncate(folder / "train" / "b.nii.gz")
    (source,), left_out = sources_of(
        tmp_path, train_data_dir=str(folder), scalar_columns="age", intensity="minmax", skip_bad_files=True
    )
    assert (source.class_name, source.processor.size, len(source)) == (None, (12, 12, 8), 2)
    assert len(left_out) == 1
    assert [dict(known) for known in source.scalars] == [{"age": 50.0}, {"age": 70.0}]


def test_grids_of_all_and_of_one_class():
    assert parse_grids("64; 64,64,48", ["a", "b"]) == {name: [(64, 64, 64), (64, 64, 48)] for name in "ab"}
    assert parse_grids("a=8;b=16", ["a", "b"]) == {"a": [(8, 8, 8)], "b": [(16, 16, 16)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c=8", "names the class 'c'; the classes are a, b"),
        ("a=8", "leaves b without a grid"),
        ("8,8", "give one number above 0, or three"),
        ("x", "--grids is 'x'; give whole numbers"),
        ("8;8,8,8", "8,8,8 twice for a class"),
    ],
)
def test_grids_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_grids(text, ["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give the training data: --train_data_dir"),
        ({"cohort": "mr", "train_data_dir": "x"}, "were both given"),
        ({"cohort": "mr", "intensity": "window"}, "--intensity belongs to --train_data_dir"),
        ({"train_data_dir": "x", "num_subjects": 3}, "--num_subjects belongs to --cohort"),
        ({"latents_dir": "x", "grids": "8"}, "--grids was decided when the latents were encoded"),
        ({"latents_dir": "x", "skip_bad_files": True}, "--skip_bad_files belongs to --train_data_dir"),
        ({"train_data_dir": "x", "classes": "y"}, "give --class_column too"),
        ({"train_data_dir": "x", "classes": "y", "class_column": "k", "low": 1.0}, "--low stands in the file"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        SourceArguments(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cohort": "mr,pet"}, "--cohort is 'mr,pet'; list some of mr, ct, t1"),
        ({"cohort": "mr,mr"}, "each once"),
        ({"cohort": "mr", "grids": None}, "give --grids"),
        ({"scalar_columns": "weight"}, "No volume has a number weight"),
        ({"num_subjects": 0}, "number of subjects is 0"),
    ],
)
def test_mistakes_about_the_cohort(cache, options, message):
    with pytest.raises(ValueError, match=message):
        sources_of(cache, **{"cohort": "mr", "num_subjects": 1, "grids": "16", **options})


@pytest.mark.parametrize(
    ("options", "table", "message"),
    [
        ({"class_column": "sort"}, None, "have no column sort; there are kind, age"),
        ({"scalar_columns": "kind"}, None, "scalar kind is 'mr' for a volume; give a number"),
        ({"unit": "HU"}, None, r"--unit HU belongs to a class in HU \(--intensity window\); leave it out"),
        ({"class_column": "age"}, None, "Column age of .* is empty for 1 volumes"),
        ({"class_column": "kind"}, {"mr": {}}, "has the class ct, but the classes are mr"),
        ({"class_column": "kind"}, {"mr": {}, "ct": {}, "us": {}}, "no volume of the class us"),
        ({"class_column": "kind"}, [], "is no table"),
        ({"class_column": "kind"}, "{", "is no JSON"),
        ({"class_column": "kind"}, {"mr": {"colour": 1}}, "configuration has 'colour'"),
    ],
)
def test_mistakes_about_files(folder, tmp_path, options, table, message):
    if table is not None:
        (tmp_path / "classes.json").write_text(table if isinstance(table, str) else json.dumps(table))
        options = {**options, "classes": str(tmp_path / "classes.json")}
    with pytest.raises(ValueError, match=message):
        sources_of(tmp_path, train_data_dir=str(folder), **options)
