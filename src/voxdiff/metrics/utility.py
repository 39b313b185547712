"""Utility of synthetic volumes: networks trained on real, synthetic and mixed sets, all tested on the same real set.

The mixes follow 3D MedDiffusion ("100S, 50R+50S, 100R, 100R+50S, 100R+100S"). Every run takes the same number of
optimisation steps, so that more data is not more training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.downstream import (
    TrainingSettings,
    classify,
    segment,
    segmentation_patch,
    train_classifier,
    train_segmenter,
)
from voxdiff.metrics.segmentation import segmentation_metrics
from voxdiff.metrics.utility_result import UtilityResult
from voxdiff.metrics.utility_runs import (
    Design,
    Pairs,
    check_pairs,
    require_one_grid,
    require_unseen_test,
    run_experiment,
)

DEFAULT_SETTINGS = ("real", "synthetic", "real+synthetic")
MEDDIFFUSION_SETTINGS = ("100S", "50R+50S", "100R", "100R+50S", "100R+100S")


def segmentation_utility(
    real: Pairs,
    synthetic: Pairs,
    test: Pairs,
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    settings: Sequence[str] = DEFAULT_SETTINGS,
    folds: int = 3,
    seeds: Sequence[int] = (0, 1),
    training: TrainingSettings | None = None,
    runs_dir: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> UtilityResult:
    """Dice and HD95 on real subjects of a small U-Net trained on each mix of real and synthetic ones.

    Args:
        real: training pairs of an image (1, x, y, z) in [0, 1] and a label map (1, x, y, z) of whole numbers.
        synthetic: the generator's pairs.
        test: real pairs that neither a training set nor the generator has seen.
        regions: name → labels, such as `BRATS_REGIONS`; None is one region a label.
        spacing_mm: voxel size along x, y, z of the test set.
        settings: names of mixes (`utility_runs.parse_mix`); percentages are of the fold's own real or synthetic part.
        folds: fold i leaves every `folds`-th training pair out, of both sets (the same ones where the sets are equally
            long); 1 leaves none out. The share of a mix is a prefix of the fold's order, so that 50R lies in 100R.
        seeds: a run for each: initial weights, order and patches.
        training: how each network is trained; None is ``TrainingSettings()``.
        runs_dir: finished runs are kept here, one JSON each, and reused where settings and data are the same.
        on_progress: called with the optimisation steps done and their total.

    Raises:
        ValueError: data or settings that cannot be used, or a training that diverged.
        ModuleNotFoundError: monai or scipy is not installed.
    """
    design = Design(settings=settings, folds=folds, seeds=seeds, training=training or TrainingSettings())
    sets = {
        name: check_pairs(pairs, name, _highest_label)
        for name, pairs in (("real", real), ("synthetic", synthetic), ("test", test))
    }
    num_labels = 1 + max(checked.highest for checked in sets.values())
    if num_labels < 2:
        raise ValueError("No label map holds a label above 0; give label maps with something to find.")
    if design.training.patch_size is None:
        require_one_grid(sets)
    require_unseen_test(sets)
    wanted = dict(regions or {f"label {value}": (value,) for value in range(1, num_labels)})

    def train_and_test(examples: Any, seed: int, on_step: Callable[[], None]) -> dict[str, float]:
        shared = design.training
        network = train_segmenter(examples, num_labels=num_labels, settings=shared, seed=seed, on_step=on_step)
        patch = segmentation_patch(examples[0][0], shared)
        scores = []
        for index in range(len(test)):
            image, labels = test[index]
            found = segment(network, image, settings=shared, patch=patch)[0].numpy()
            scores.append(segmentation_metrics(found, labels[0].numpy(), spacing_mm=spacing_mm, regions=wanted))
        return _mean_scores(scores, list(wanted))

    task = {
        "task": "segmentation",
        "num_labels": num_labels,
        "regions": {name: list(labels) for name, labels in wanted.items()},
        "spacing_mm": [float(edge) for edge in spacing_mm],
    }
    return UtilityResult(
        *run_experiment(design, sets, task, train_and_test, runs_dir=runs_dir, on_progress=on_progress)
    )


def classification_utility(
    real: Pairs,
    synthetic: Pairs,
    test: Pairs,
    *,
    settings: Sequence[str] = DEFAULT_SETTINGS,
    folds: int = 3,
    seeds: Sequence[int] = (0, 1),
    training: TrainingSettings | None = None,
    runs_dir: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> UtilityResult:
    """Accuracy and macro F1 on real subjects of a small ResNet trained on each mix of real and synthetic ones.

    Args:
        real: training pairs of an image (1, x, y, z) in [0, 1], all of one grid, and a class 0, 1, …
        synthetic: the generator's pairs.
        test: real pairs that neither a training set nor the generator has seen; F1 is the mean over its classes.
        settings: as for :func:`segmentation_utility`, and so are the arguments below.
        folds: how many parts the training sets are cut into.
        seeds: a run for each.
        training: how each network is trained; without a patch size.
        runs_dir: where finished runs are kept.
        on_progress: called with the optimisation steps done and their total.

    Raises:
        ValueError: data or settings that cannot be used, or a training that diverged.
        ModuleNotFoundError: monai, scipy or scikit-learn is not installed.
    """
    design = Design(settings=settings, folds=folds, seeds=seeds, training=training or TrainingSettings())
    sets = {
        name: check_pairs(pairs, name, _class_of)
        for name, pairs in (("real", real), ("synthetic", synthetic), ("test", test))
    }
    num_classes = 1 + max(checked.highest for checked in sets.values())
    if num_classes < 2:
        raise ValueError("Every volume is of class 0; give at least two classes.")
    require_one_grid(sets)
    require_unseen_test(sets)
    truth = [int(test[index][1]) for index in range(len(test))]

    def train_and_test(examples: Any, seed: int, on_step: Callable[[], None]) -> dict[str, float]:
        shared = design.training
        network = train_classifier(examples, num_classes=num_classes, settings=shared, seed=seed, on_step=on_step)
        found = [classify(network, test[index][0], settings=shared) for index in range(len(test))]
        return {"accuracy": float(np.mean(np.equal(found, truth))), "macro F1": _macro_f1(found, truth)}

    task = {"task": "classification", "num_classes": num_classes}
    return UtilityResult(
        *run_experiment(design, sets, task, train_and_test, runs_dir=runs_dir, on_progress=on_progress)
    )


def _mean_scores(scores: Sequence[Mapping[str, float]], regions: Sequence[str]) -> dict[str, float]:
    """Means over the test subjects, by region and over the regions."""
    means = {}
    for name, prefix in (("Dice", "dice"), ("HD95 mm", "hd95")):
        by_region = {region: float(np.mean([score[f"{prefix}_{region}"] for score in scores])) for region in regions}
        means[f"{name} mean"] = float(np.mean(list(by_region.values())))
        means |= {f"{name} {region}": value for region, value in by_region.items()}
    return means


def _macro_f1(found: Sequence[int], truth: Sequence[int]) -> float:
    try:
        from sklearn.metrics import f1_score
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("F1 needs scikit-learn: pip install voxdiff[metrics].") from error
    return float(f1_score(truth, found, labels=sorted(set(truth)), average="macro", zero_division=0))


def _highest_label(image: torch.Tensor, labels: Any, where: str) -> int:
    if not isinstance(labels, torch.Tensor) or labels.shape != image.shape or labels.is_floating_point():
        given = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else repr(labels)
        raise ValueError(f"{where} of shape {tuple(image.shape)} has the label map {given}; give whole numbers alike.")
    if int(labels.min()) < 0 or int(labels.max()) > 255:
        raise ValueError(f"{where} has labels from {int(labels.min())} to {int(labels.max())}; give 0 to 255.")
    return int(labels.max())


def _class_of(image: torch.Tensor, target: Any, where: str) -> int:
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        raise ValueError(f"{where} has the class {target!r}; give a whole number 0, 1, ….")
    return target
