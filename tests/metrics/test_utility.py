"""Utility: the bookkeeping of mixes, folds and seeds with a stand-in for the training, and one true run of each task."""

import json
import math

import pytest
import torch

from voxdiff.metrics import utility as utility_module
from voxdiff.metrics.downstream import TrainingSettings
from voxdiff.metrics.utility import MEDDIFFUSION_SETTINGS, classification_utility, segmentation_utility
from voxdiff.metrics.utility_result import mean_with_interval
from voxdiff.metrics.utility_runs import Design, Mix, check_pairs, parse_mix, run_experiment

TRAINING = TrainingSettings(steps=4)


def numbered(count, first=0):
    """Pairs whose target names them."""
    return [(torch.full((1, 2, 2, 2), 0.5), first + index) for index in range(count)]


def experiment(real=10, synthetic=10, *, train_and_test=None, **arguments):
    runs_dir, on_progress = arguments.pop("runs_dir", None), arguments.pop("on_progress", None)
    design = {"settings": ("real", "synthetic"), "folds": 1, "seeds": (0,), "training": TRAINING, **arguments}
    sets = {"real": numbered(real), "synthetic": numbered(synthetic, 100), "test": numbered(2, 200)}
    checked = {name: check_pairs(pairs, name, lambda image, target, where: target) for name, pairs in sets.items()}
    seen = []

    def remember(examples, seed, on_step):
        seen.append((sorted(target for _, target in examples), seed))
        for _ in range(TRAINING.steps):
            on_step()
        return {"score": float(len(seen))}

    protocol, runs = run_experiment(
        Design(**design),
        checked,
        {"task": "toy"},
        train_and_test or remember,
        runs_dir=runs_dir,
        on_progress=on_progress,
    )
    return seen, protocol, runs


def box_pairs(count, first=0, noise=0.3):
    pairs = []
    for seed in range(first, first + count):
        generator = torch.Generator().manual_seed(seed)
        x, y, z = (int(torch.randint(10, (), generator=generator)) for _ in range(3))
        image, label = noise * torch.rand(1, 16, 16, 16, generator=generator), torch.zeros(1, 16, 16, 16).byte()
        image[:, x : x + 6, y : y + 6, z : z + 6] += 0.6
        label[:, x : x + 6, y : y + 6, z : z + 6] = 1
        pairs.append((image, label))
    return pairs


@pytest.mark.parametrize(
    ("setting", "mix"),
    [
        ("real", (1, 0)),
        ("synthetic", (0, 1)),
        ("real+synthetic", (1, 1)),
        ("50R+100S", (0.5, 1)),
        ("25S+real", (1, 0.25)),
    ],
)
def test_a_mix_reads_as_it_is_named(setting, mix):
    assert parse_mix(setting) == Mix(*mix)


@pytest.mark.parametrize("setting", ["", "fake", "0R", "101S", "50R+50R", "real+100R", "50"])
def test_a_mix_without_meaning_is_refused(setting):
    with pytest.raises(ValueError, match="write real, synthetic"):
        parse_mix(setting)


def test_mixes_take_their_share_and_the_smaller_lies_in_the_larger():
    seen, _, runs = experiment(settings=MEDDIFFUSION_SETTINGS)
    sizes = [(run["num_real"], run["num_synthetic"]) for run in runs]
    assert sizes == [(0, 10), (5, 5), (10, 0), (10, 5), (10, 10)]
    half, more = set(seen[1][0]), set(seen[3][0])
    assert {target for target in half if target >= 100} == {target for target in more if target >= 100}
    assert seen[0][0] == list(range(100, 110)) and seen[2][0] == list(range(10))


def test_every_training_example_is_left_out_by_one_fold_and_the_same_ones_of_both_sets():
    seen, _, _ = experiment(folds=5)
    left_out = [sorted(set(range(10)) - set(targets)) for targets, _ in seen[::2]]
    assert sorted(index for fold in left_out for index in fold) == list(range(10))
    assert [[target - 100 for target in targets] for targets, _ in seen[1::2]] == [targets for targets, _ in seen[::2]]


def test_each_fold_is_trained_with_each_seed_in_each_setting():
    seen, protocol, runs = experiment(folds=2, seeds=(3, 5))
    assert {(run["setting"], run["fold"], run["seed"]) for run in runs} == {
        (setting, fold, seed) for setting in ("real", "synthetic") for fold in (0, 1) for seed in (3, 5)
    }
    assert [seed for _, seed in seen] == [run["seed"] for run in runs]
    json.dumps(protocol)


def test_progress_counts_steps_up_to_the_total():
    calls = []
    experiment(on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(step, 8) for step in range(1, 9)]


def test_finished_runs_are_kept_and_a_killed_experiment_goes_on(tmp_path):
    def killed(examples, seed, on_step):
        if len(examples) and examples[0][1] >= 100:
            raise KeyboardInterrupt
        return {"score": 1.0}

    with pytest.raises(KeyboardInterrupt):
        experiment(train_and_test=killed, runs_dir=tmp_path)
    calls = []
    seen, _, runs = experiment(runs_dir=tmp_path, on_progress=lambda done, total: calls.append(done))
    assert [targets[0] for targets, _ in seen] == [100]
    assert [run["metrics"]["score"] for run in runs] == [1.0, 1.0] and calls == [4, 5, 6, 7, 8]


def test_real_runs_serve_every_generator_and_no_other_data_or_training(tmp_path):
    experiment(runs_dir=tmp_path)
    assert [targets[0] for targets, _ in experiment(synthetic=9, runs_dir=tmp_path)[0]] == [100]
    assert len(experiment(real=9, runs_dir=tmp_path)[0]) == 1
    assert len(experiment(training=TrainingSettings(steps=4, batch_size=3), runs_dir=tmp_path)[0]) == 2
    assert len(experiment(folds=2, runs_dir=tmp_path)[0]) == 4


def test_a_damaged_run_is_named(tmp_path):
    experiment(runs_dir=tmp_path)
    next(tmp_path.glob("real-*.json")).write_text("{")
    with pytest.raises(ValueError, match="delete the file"):
        experiment(runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": ("real", "real")}, "each once"),
        ({"settings": ()}, "at least one"),
        ({"folds": 0}, "0 folds"),
        ({"seeds": ()}, "at least one of each"),
        ({"settings": ("synthetic",), "synthetic": 0}, "takes no example of the synthetic set, which has 0"),
        ({"settings": ("20R",), "real": 2}, "takes no example of the real set"),
    ],
)
def test_an_impossible_design_is_refused_before_any_training(arguments, message):
    def train(*_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=message):
        experiment(train_and_test=train, **arguments)


def test_interval_is_students():
    entry = mean_with_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert entry["value"] == 2.5 and entry["sd"] == pytest.approx(math.sqrt(5 / 3))
    assert (entry["low"], entry["high"]) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)
    assert mean_with_interval([1.0]) == {"value": 1.0, "sd": None, "low": None, "high": None}


def test_differences_are_paired_by_fold_and_seed(monkeypatch):
    noise = iter([0.1, 0.3, 0.5, 0.7, 0.2, 0.4])
    monkeypatch.setattr(utility_module, "train_classifier", lambda *_, **__: None)
    monkeypatch.setattr(utility_module, "classify", lambda *_, **__: 0)
    monkeypatch.setattr(utility_module, "_macro_f1", lambda *_: next(noise))
    pairs = [(torch.zeros(1, 8, 8, 8), kind) for kind in (0, 1, 0)]
    test = [(torch.ones(1, 8, 8, 8), kind) for kind in (0, 1, 0)]
    result = classification_utility(pairs, pairs, test, settings=("synthetic", "real"), folds=1, seeds=(0, 1, 2))
    entry = result.summary()["synthetic"]["macro F1"]
    assert entry["value"] == pytest.approx((0.1 + 0.5 + 0.2) / 3)
    assert entry["difference"]["value"] == pytest.approx(-0.2) and entry["difference"]["sd"] == pytest.approx(
        0, abs=1e-9
    )
    assert "difference" not in result.summary()["real"]["macro F1"]
    assert result.summary()["real"]["accuracy"]["value"] == pytest.approx(2 / 3)


def test_segmentation_ranks_good_labels_over_misplaced_ones():
    good, test = box_pairs(4), box_pairs(3, first=50)
    misplaced = [(image, label.roll(8, dims=1)) for image, label in box_pairs(4, first=20)]
    training = TrainingSettings(steps=25, learning_rate=1e-2)
    settings = {"settings": ("real", "synthetic"), "folds": 1, "seeds": (0,), "training": training}
    result = segmentation_utility(good, misplaced, test, spacing_mm=(2, 2, 2), **settings)
    summary = result.to_dict()["summary"]
    assert summary["real"]["Dice label 1"]["value"] > 0.8 > 0.4 > summary["synthetic"]["Dice label 1"]["value"]
    assert summary["synthetic"]["HD95 mm mean"]["difference"]["value"] > 2
    assert summary["real"]["Dice mean"] == summary["real"]["Dice label 1"]
    markdown = result.to_markdown()
    assert "25 steps of 2 in every setting" in markdown and "| synthetic | 0 | 4 |" in markdown
    again = segmentation_utility(good, misplaced, test, spacing_mm=(2, 2, 2), **settings)
    assert again.to_dict() == json.loads(json.dumps(result.to_dict()))


def test_a_test_image_that_was_trained_on_is_refused():
    pairs = box_pairs(3)
    with pytest.raises(ValueError, match=r"1 of the 2 test images are in the synthetic set.*test image 1"):
        segmentation_utility(box_pairs(2, first=30), pairs, [*box_pairs(1, first=50), pairs[0]], training=TRAINING)


def test_regions_join_labels():
    pairs, test = ([(image, label * 2) for image, label in box_pairs(2, first=first)] for first in (0, 50))
    result = segmentation_utility(
        pairs,
        [],
        test,
        regions={"WT": (1, 2), "core": (1,)},
        settings=("real",),
        folds=1,
        seeds=(0,),
        training=TRAINING,
    )
    assert result.metrics == ["Dice mean", "Dice WT", "Dice core", "HD95 mm mean", "HD95 mm WT", "HD95 mm core"]
    assert result.protocol["num_labels"] == 3


def test_macro_f1_is_the_mean_over_the_classes_of_the_test_set():
    assert utility_module._macro_f1([0, 0, 1, 2], [0, 0, 1, 1]) == pytest.approx((1 + 2 / 3) / 2)


BOX = box_pairs(1)[0]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((BOX[0] * 2, BOX[1]), r"bring it to \[0, 1\]"),
        ((BOX[0] * float("nan"), BOX[1]), r"bring it to \[0, 1\]"),
        ((BOX[0][0], BOX[1]), r"give floats \(1, x, y, z\)"),
        ((BOX[0], BOX[1].float()), "give whole numbers alike"),
        ((BOX[0], BOX[1][:, :8]), "give whole numbers alike"),
        ((BOX[0], BOX[1].short() - 1), "labels from -1 to 0"),
        ((BOX[0], BOX[1] * 0), "something to find"),
        ((BOX[0][..., :8], BOX[1][..., :8]), "different grids"),
    ],
)
def test_pairs_that_cannot_be_segmented(pair, message):
    others = [] if "find" in message else [BOX]
    with pytest.raises(ValueError, match=message):
        segmentation_utility([pair], others, others, training=TRAINING)


@pytest.mark.parametrize(
    ("classes", "message"), [((0, 0), "at least two classes"), ((0, -1), "the class -1"), ((0, 1.0), "the class 1.0")]
)
def test_classes_that_cannot_be_learned(classes, message):
    pairs = [(BOX[0], kind) for kind in classes]
    with pytest.raises(ValueError, match=message):
        classification_utility(pairs, pairs, pairs, training=TRAINING)
