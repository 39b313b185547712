import math

import numpy as np
import pytest
import torch

from voxdiff import VolumeProcessor
from voxdiff.pipelines.patch_volume_classes import read_classes
from voxdiff.pipelines.patch_volume_requests import VolumeRequest, count_volumes, make_requests

OWN = VolumeProcessor(size=(8, 8, 8))
EITHER_DROPPED = {"null_condition": True, "optional_scalars": True}
NOTHING_DROPPED = {"null_condition": False, "optional_scalars": False}
ALL, SOME = {"age": 3, "volume": 2}, {"age": 3}
CLASSES = read_classes({"brain": {"id": 0, "size": [16, 8, 8]}, "knee": {"id": 4}}, OWN, 5)


def requests(class_labels=None, scalars=None, batch_size=1, **model):
    count = count_volumes(batch_size, class_labels, scalars)
    model = {"classes": CLASSES, "processor": OWN, "scalar_names": ["volume", "age"], **EITHER_DROPPED, **model}
    return make_requests(count, class_labels, scalars, **model)


@pytest.mark.parametrize("labels", [["brain", "knee"], [0, 4], ("brain", 4), np.array([0, 4]), torch.tensor([0, 4])])
def test_one_class_a_volume(labels):
    assert [(request.name, request.label) for request in requests(labels)] == [("brain", 0), ("knee", 4)]
    assert [request.processor.size for request in requests(labels)] == [(16, 8, 8), (8, 8, 8)]


@pytest.mark.parametrize("label", ["knee", 4, np.int64(4), torch.tensor(4)])
def test_one_class_for_all(label):
    assert [request.name for request in requests(label, batch_size=3)] == ["knee"] * 3


@pytest.mark.parametrize("ages", [[30, 40], np.array([30, 40]), torch.tensor([30.0, 40.0])])
def test_scalars_for_each_and_for_all(ages):
    found = requests("brain", {"age": ages, "volume": 2})
    assert [request.scalars for request in found] == [{"age": 30.0, "volume": 2.0}, {"age": 40.0, "volume": 2.0}]
    assert all(type(value) is float for request in found for value in request.scalars.values())


def test_what_is_not_asked_is_absent():
    [request] = requests()
    assert request == VolumeRequest(processor=OWN) and request.is_empty
    assert not requests("brain")[0].is_empty and not requests(scalars=SOME, classes={})[0].is_empty


@pytest.mark.parametrize(("classes", "label"), [(CLASSES, None), (CLASSES, "brain"), ({}, None)])
@pytest.mark.parametrize("scalars", [None, SOME, ALL])
@pytest.mark.parametrize("null_condition", [True, False])
@pytest.mark.parametrize("optional_scalars", [True, False])
def test_a_call_is_one_of_the_trained_combinations(classes, scalars, label, null_condition, optional_scalars):
    everything = (label is not None or not classes) and (optional_scalars or scalars is ALL)
    nothing = null_condition and label is None and scalars is None
    given = {"classes": classes, "null_condition": null_condition, "optional_scalars": optional_scalars}
    if everything or nothing:
        assert requests(label, scalars, **given)[0].scalars == (scalars or {})
    else:
        with pytest.raises(ValueError, match=r"class-conditional|without a class|lacks .*give all of age, volume\."):
            requests(label, scalars, **given)


def test_the_record_is_plain():
    [request] = requests(0, {"age": 30})
    assert request.describe((16, 8, 8), (np.float64(2), 2, 2), 3) == {
        "class": "brain",
        "class_label": 0,
        "scalars": {"age": 30.0},
        "guidance_scale": 3.0,
        "size": [16, 8, 8],
        "spacing": None,
        "resampled_to": [2.0, 2.0, 2.0],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "hand"}, "There is no class 'hand'"),
        ({"class_labels": []}, "class_labels has 0 entries for 1 volumes"),
        ({"class_labels": [0, 4], "batch_size": 3}, "class_labels has 2 entries for 3 volumes; give one for all"),
        ({"class_labels": [0, 4], "scalars": {"age": [1, 2, 3]}}, r"scalars\['age'\] has 3 entries for 2 volumes"),
        ({"class_labels": 0, "classes": {}}, "this model has no classes; leave them out"),
        (NOTHING_DROPPED, r"class-conditional: give class_labels, of brain \(0\), knee \(4\)"),
        ({"class_labels": [0, None], "null_condition": False}, "class-conditional: give class_labels"),
        ({"class_labels": [0, None], "scalars": SOME}, r"without a class, .*of brain \(0\), knee \(4\), or neither"),
        ({"scalars": {}}, r"scalars is \{\}; give name -> number, or leave it out"),
        ({"scalars": 3}, "scalars is 3; give name -> number"),
        ({"scalars": {"age": 3}, "scalar_names": []}, "no scalar conditions; leave them out"),
        ({"scalars": {"weight": 3}}, "scalars names weight; this model takes age, volume"),
        (
            {"class_labels": 0, **NOTHING_DROPPED},
            "scalars lacks age, volume, but .* single scalars absent; give all of",
        ),
        ({"class_labels": 0, "scalars": SOME, **NOTHING_DROPPED}, "scalars lacks volume"),
        ({"class_labels": 0, "scalars": {"age": math.nan}}, "The scalar 'age' is nan; give a finite number"),
        ({"class_labels": 0, "scalars": {"age": [3, "old"]}}, "The scalar 'age' is 'old'"),
        ({"class_labels": 0, "scalars": {"age": True}}, "The scalar 'age' is True"),
    ],
)
def test_conditions_that_do_not_fit_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        requests(**arguments)


def test_a_class_takes_the_scalars_it_was_trained_with(caplog):
    table = {"brain": {"id": 0, "scalars": {"age": [20, 60]}}, "knee": {"id": 4, "scalars": {}}}
    classes = read_classes(table, OWN, 5)
    assert requests("brain", {"age": 60}, classes=classes)[0].scalars == {"age": 60.0}
    assert not caplog.records
    requests("brain", {"age": 61}, classes=classes)
    assert "'age' is 61, outside of the 20 to 60 that 'brain' was trained with" in caplog.text
    with pytest.raises(ValueError, match="class 'knee' was trained without the scalar age; it takes none"):
        requests(["brain", "knee"], {"age": 30}, classes=classes)
