import json

import pytest

from voxdiff import VolumeProcessor
from voxdiff.pipelines.patch_volume_classes import find_class, plain_classes, published_classes, read_classes

PROCESSOR = VolumeProcessor(size=(16, 16, 8), spacing=(2, 2, 3), intensity="percentile", low=1, high=99, background=0)


def test_the_published_table():
    table = read_classes(json.loads(json.dumps(published_classes())), VolumeProcessor(), 7)
    found = {name: (entry.id, entry.processor.size, entry.processor.spacing) for name, entry in table.items()}
    assert found["CTChestAbdomen"] == (1, (256, 256, 256), (1.25, 1.25, 1.25))
    assert found["CTChestAbdomen-512"] == (1, (512, 512, 512), (0.7, 0.7, 1.0))
    assert found["CTLegs-256x256x512"] == (2, (256, 256, 512), (1.25, 1.25, 1.25))
    assert found["MRT2Brain"] == (4, (192, 192, 192), (1.0, 1.0, 1.0))
    assert found["MRAbdomen"] == (5, (256, 256, 128), (1.2, 1.2, 2.0))
    assert found["MRKnee"] == (6, (320, 320, 64), (1.0, 1.0, 1.0))
    assert {label for label, _, _ in found.values()} == set(range(7))
    assert {entry.processor.unit for entry in table.values()} == {"a.u."}


def test_a_class_differs_from_the_processor_where_it_says_so():
    table = read_classes({"a": {"id": 1, "size": (8, 8, 8), "high": 98}}, PROCESSOR, 2)
    processor = table["a"].processor
    assert (processor.size, processor.spacing) == ((8, 8, 8), (2.0, 2.0, 3.0))
    assert (processor.intensity, processor.low, processor.high, processor.background) == ("percentile", 1, 98, 0)


def test_a_rule_of_its_own_inherits_nothing_of_the_processors_rule():
    table = read_classes({"ct": {"id": 0, "intensity": "window", "low": -1000, "high": 500}}, PROCESSOR, 1)
    processor = table["ct"].processor
    assert (processor.unit, processor.background, processor.output_range) == ("HU", None, (-1000, 500))


def test_none_is_a_value_of_its_own():
    entry = {"id": 0, "spacing": None, "intensity": "percentile", "background": None}
    processor = read_classes(json.loads(json.dumps(plain_classes({"a": entry}))), PROCESSOR, 1)["a"].processor
    assert (processor.spacing, processor.background, processor.size) == (None, None, (16, 16, 8))


def test_classes_without_a_table_are_called_by_their_labels():
    table = read_classes(None, PROCESSOR, 3)
    assert [find_class(table, label).processor for label in (0, "2")] == [PROCESSOR, PROCESSOR]
    assert read_classes(None, PROCESSOR, None) == {}


def test_a_name_of_digits_goes_before_a_label():
    table = read_classes({"1": {"id": 0}, "2": {"id": 1}}, PROCESSOR, 2)
    assert [find_class(table, label).name for label in ("1", "2", 0, 1, "0")] == ["1", "2", "1", "2", "1"]


def test_a_label_of_several_grids_needs_a_name():
    table = read_classes({"small": {"id": 0, "size": [8, 8, 8]}, "large": {"id": 0}}, PROCESSOR, 1)
    assert find_class(table, "small").processor.size == (8, 8, 8)
    with pytest.raises(ValueError, match="The class label 0 belongs to large, small; give one of these names"):
        find_class(table, 0)


def test_plain_classes_are_what_json_gives_back():
    classes = {"a": {"id": 0, "size": (8, 8, 8), "intensity": "minmax"}}
    plain = plain_classes(classes)
    assert json.loads(json.dumps(plain)) == plain == {"a": {"id": 0, "size": [8, 8, 8], "intensity": "minmax"}}


@pytest.mark.parametrize(
    ("classes", "known", "message"),
    [
        ({"a": {"size": [8, 8, 8]}}, 2, "give an 'id' from 0 to 1"),
        ({"a": {"id": 2}}, 2, "give an 'id' from 0 to 1"),
        ({"a": {"id": "0"}}, 2, "give an 'id' from 0 to 1"),
        ({"a": {"id": 0, "value_range": [0, 1]}}, 2, "other than value_range"),
        ({"a": {"id": 0, "sise": [8, 8, 8]}}, 2, "The class 'a' cannot be used: .* has 'sise'; it may have"),
        ({"a": {"id": 0, "intensity": "window"}}, 2, "The class 'a' cannot be used: The window is None to None"),
        (
            {"a": {"id": 0, "scalars": ["age"]}},
            2,
            r"scalars of class 'a' are \['age'\]; give name -> \[lowest, highest\]",
        ),
        ({"a": {"id": 0}}, None, "the network has no class table; leave them out"),
    ],
)
def test_tables_that_do_not_fit_raise(classes, known, message):
    with pytest.raises(ValueError, match=message):
        read_classes(classes, PROCESSOR, known)


def test_an_unknown_class_is_told_the_known_ones():
    table = read_classes(published_classes(), VolumeProcessor(), 7)
    for label in ("MRHand", 7):
        with pytest.raises(ValueError, match=r"There is no class .*CTHeadNeck \(0\).*MRKnee \(6\)\."):
            find_class(table, label)


@pytest.mark.parametrize("label", [True, 1.0, None])
def test_what_is_neither_name_nor_label_is_refused(label):
    table = read_classes(published_classes(), VolumeProcessor(), 7)
    with pytest.raises(ValueError, match=r"give a name or a label: CTHeadNeck \(0\)"):
        find_class(table, label)
