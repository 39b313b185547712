"""The runs of a utility experiment: mixes × folds × seeds, the training set of each, and the folder that keeps them."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from voxdiff.metrics.downstream import TrainingSettings
from voxdiff.volumes import atomic_path

UTILITY_VERSION = 1
"""Raised whenever a run's numbers change for the same data."""

_FOLD_SEED = 0
_RANGE_TOLERANCE = 1e-3
_TERM = re.compile(r"(?P<whole>real|synthetic)|(?P<percent>[1-9]\d?|100)(?P<kind>[RS])")

Pairs = Sequence[tuple[torch.Tensor, Any]]
TrainAndTest = Callable[[Any, int, Callable[[], None]], dict[str, float]]


class Mix(NamedTuple):
    """Which part of the real and of the synthetic training set a setting uses, 0 to 1 each."""

    real: float
    synthetic: float


class Run(NamedTuple):
    """One training: a named mix, what is left out, and the seed."""

    setting: str
    fold: int
    seed: int


@dataclass(frozen=True)
class CheckedPairs:
    """A set of pairs that was read once.

    Attributes:
        pairs: as they were given.
        sha256: of all voxels and targets in their order.
        grids: of the images.
        highest: the largest label or class.
        images: SHA-256 of each image's voxels.
    """

    pairs: Pairs
    sha256: str
    grids: frozenset[tuple[int, ...]]
    highest: int
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which runs an experiment has, and how each is trained.

    Raises:
        ValueError: a setting has no meaning or comes twice, or there is no fold or no seed.
    """

    settings: Sequence[str]
    folds: int
    seeds: Sequence[int]
    training: TrainingSettings

    def __post_init__(self) -> None:
        for setting in self.settings:
            parse_mix(setting)
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ValueError(f"The settings are {list(self.settings)}; give at least one, each once.")
        if self.folds < 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"There are {self.folds} folds and the seeds {list(self.seeds)}; give at least one of each, seeds once."
            )

    def runs(self) -> list[Run]:
        """In the order they are made: a fold and seed at a time, so that pairs of settings are complete early."""
        return [
            Run(setting, fold, seed) for fold in range(self.folds) for seed in self.seeds for setting in self.settings
        ]


def parse_mix(setting: str) -> Mix:
    """The mix that a name stands for: "real", "synthetic", "real+synthetic", or percentages such as "50R+100S".

    Raises:
        ValueError: the name is none of these.
    """
    shares = {"R": 0.0, "S": 0.0}
    for term in setting.split("+"):
        match = _TERM.fullmatch(term)
        kind = (match["kind"] or match["whole"][0].upper()) if match else None
        if match is None or kind is None or shares[kind]:
            raise ValueError(
                f"The setting is {setting!r}; write real, synthetic, real+synthetic, or percentages such as 50R+100S."
            )
        shares[kind] = int(match["percent"] or 100) / 100
    return Mix(real=shares["R"], synthetic=shares["S"])


def check_pairs(pairs: Pairs, name: str, highest_of: Callable[[torch.Tensor, Any, str], int]) -> CheckedPairs:
    """Read every pair once, before anything is trained.

    Args:
        pairs: images (1, x, y, z) in [0, 1] with their targets.
        name: what to call the set in an error.
        highest_of: checks the target of an image and gives its largest label or class.

    Raises:
        ValueError: an image or a target cannot be used.
    """
    digest, grids, highest, images = hashlib.sha256(), set(), 0, []
    for index in range(len(pairs)):
        image, target = pairs[index]
        where = f"The {name} image {index}"
        if image.ndim != 4 or image.shape[0] != 1 or not image.is_floating_point():
            raise ValueError(f"{where} is {image.dtype} of shape {tuple(image.shape)}; give floats (1, x, y, z).")
        low, high = float(image.min()), float(image.max())
        if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # false for NaN too
            raise ValueError(f"{where} runs from {low:g} to {high:g}; bring it to [0, 1] first.")
        highest = max(highest, highest_of(image, target, where))
        grids.add(tuple(image.shape[1:]))
        images.append(hashlib.sha256(image.float().contiguous().numpy().tobytes()).hexdigest())
        for tensor in (image.float(), torch.as_tensor(target, dtype=torch.int64)):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return CheckedPairs(pairs, digest.hexdigest(), frozenset(grids), highest, tuple(images))


def require_unseen_test(sets: Mapping[str, CheckedPairs]) -> None:
    """Raise ValueError if an image of the test set is one of the real or synthetic ones, voxel by voxel."""
    for name in ("real", "synthetic"):
        shared = [place for place, image in enumerate(sets["test"].images) if image in set(sets[name].images)]
        if shared:
            raise ValueError(
                f"{len(shared)} of the {len(sets['test'].images)} test images are in the {name} set, too (the first is test "
                f"image {shared[0]}); test on subjects that neither a training set nor the generator has seen."
            )


def require_one_grid(sets: Mapping[str, CheckedPairs]) -> None:
    """Raise ValueError unless all images have one grid."""
    grids = sorted(frozenset().union(*(checked.grids for checked in sets.values())))
    if len(grids) > 1:
        listed = ", ".join("x".join(map(str, grid)) for grid in grids[:4])
        raise ValueError(
            f"The images have different grids ({listed}); bring them to one, or give a patch size for segmentation."
        )


def run_experiment(
    design: Design,
    sets: Mapping[str, CheckedPairs],
    task: Mapping[str, Any],
    train_and_test: TrainAndTest,
    *,
    runs_dir: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make every run of a design, or take it from the folder.

    Args:
        design: the runs.
        sets: "real", "synthetic" and "test".
        task: what belongs to the protocol beside the design, as plain values.
        train_and_test: from (examples, seed, on_step) to metrics.
        runs_dir: where finished runs are kept.
        on_progress: called with the steps done and their total.

    Returns:
        The protocol, and a record a run with its setting, fold, seed, numbers of examples and metrics.

    Raises:
        ValueError: a mix has no example, the test set is empty, or a kept run cannot be read.
    """
    training_sets = {run: _training_set(run, design.folds, sets) for run in design.runs()}
    if not len(sets["test"].pairs):
        raise ValueError("The test set is empty; give real volumes that were never trained on.")
    shared = {
        "version": UTILITY_VERSION,
        "torch": str(torch.__version__),
        **task,
        "training": {**asdict(design.training), "optimizer": "AdamW, cosine to 0", "augmentation": "none"},
        "sha256": {name: checked.sha256 for name, checked in sets.items()},
        "folds": design.folds,
    }
    total, done, records = len(training_sets) * design.training.steps, 0, []

    def advance(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, total)

    for run, (examples, counts) in training_sets.items():
        path = _run_path(runs_dir, shared, run)
        if path is not None and path.is_file():
            records.append(_read_run(path))
            advance(design.training.steps)
            continue
        metrics = train_and_test(examples, run.seed, advance)
        records.append({**run._asdict(), **counts, "metrics": metrics})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(records[-1], indent=2) + "\n", encoding="utf-8")
    sizes = {f"num_{name}": len(checked.pairs) for name, checked in sets.items()}
    return {**shared, **sizes, "settings": list(design.settings), "seeds": list(design.seeds)}, records


def _training_set(run: Run, folds: int, sets: Mapping[str, CheckedPairs]) -> tuple[Any, dict[str, int]]:
    """The examples of a run, and how many of each kind they are."""
    parts: list[Subset[Any]] = []
    counts = {}
    for kind, share in parse_mix(run.setting)._asdict().items():
        pairs = sets[kind].pairs
        kept = _fold_part(len(pairs), run.fold, folds)
        chosen = kept[: int(share * len(kept) + 0.5)]
        if share and not chosen:
            raise ValueError(
                f"The setting {run.setting!r} takes no example of the {kind} set, which has {len(pairs)} and keeps "
                f"{len(kept)} in fold {run.fold} of {folds}; give more volumes or fewer folds."
            )
        counts[f"num_{kind}"] = len(chosen)
        parts.append(Subset(pairs, chosen))  # type: ignore[arg-type]
    return ConcatDataset([part for part in parts if len(part)]), counts


def _fold_part(count: int, fold: int, folds: int) -> list[int]:
    """Indices that a fold keeps, in a random order that depends on the count only."""
    order = np.random.default_rng(_FOLD_SEED).permutation(count).tolist()
    return [index for place, index in enumerate(order) if folds == 1 or place % folds != fold]


def _run_path(runs_dir: str | Path | None, shared: Mapping[str, Any], run: Run) -> Path | None:
    """Where a run is kept; one on real data alone is the same whatever the generator."""
    if runs_dir is None:
        return None
    unused = {name for name, share in parse_mix(run.setting)._asdict().items() if not share}
    used = {name: digest for name, digest in shared["sha256"].items() if name not in unused}
    key = hashlib.sha256(json.dumps([{**shared, "sha256": used}, run], sort_keys=True).encode()).hexdigest()[:16]
    return Path(runs_dir) / f"{run.setting}-fold{run.fold}-seed{run.seed}-{key}.json"


def _read_run(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The finished run {path} cannot be read ({error}); delete the file.") from error
    return record
