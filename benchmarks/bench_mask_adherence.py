"""Do generated volumes follow their masks, and can they stand in for real ones when a segmentation network is trained?

    python benchmarks/bench_mask_adherence.py --gem FOLDER --baseline FOLDER --runs FOLDER --cache FOLDER
        [--cohort flair|ct] [--sets baseline IC] [--subjects 60] [--test 40] [--seeds 3] [--training-steps 400]

Training (the paper's Table 3): a set is made of the masks of the first training subjects, with Make-A-Volume
("baseline"), with slices of other training subjects (IC), with generated slices (IG), or with changed masks ("+ MA").
Networks trained on the real subjects, on each set, and on both together are tested on real test subjects.
Adherence: networks trained on the real training subjects look for the masks in volumes that were made of the masks of
test subjects. The generators were trained on more real subjects than the segmentation networks see (300 beside
--subjects), so that a gain of "both together" may be theirs; in the paper all have the same ones. "real" is what they
find in the real volumes, the most that can be expected; "another's mask" holds the real volumes against the masks of
other subjects, which is Dice without any adherence.

Regions are whole tumour (WT), tumour core (TC) and enhancing tumour (ET), on CT the organs. Dice with 95 % intervals:
over runs (training), or over volumes after the mean of the networks (adherence). Sets, networks and runs are kept in
--runs and never repeated. Writes NAME.json and NAME.md below --out.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from informed_slice_sets import (
    AUGMENTED,
    GEM,
    VolumeSet,
    cohort_cases,
    grid_sets,
    load_models,
    make_set,
    mask_labels,
    unit_volume,
)
from record import RESULTS, environment, markdown_table, write_result

from voxdiff import InformedSlicePipeline
from voxdiff.data.brain_masks import BRAIN_LABEL
from voxdiff.data.ct_anatomy import ORGANS
from voxdiff.metrics.downstream import TrainingSettings
from voxdiff.metrics.intervals import mean_interval
from voxdiff.metrics.segmentation import BRATS_REGIONS, dice
from voxdiff.metrics.utility import segmentation_utility
from voxdiff.metrics.utility_result import UtilityResult, mean_with_interval
from voxdiff.volume_files import load_volume
from voxdiff.workflows.case_segmenter import CaseSegmenter, train_case_segmenter
from voxdiff.workflows.masked_cases import MaskedCase

Regions = Mapping[str, tuple[int, ...]]
SETS = ("baseline", "IC", "IG", "baseline" + AUGMENTED, "IC" + AUGMENTED, "IG" + AUGMENTED)
PAPER = {"real": 72.90, "baseline": 59.70, "IC": 68.53}  # Dice, BraTS, nnU-Net


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    described = environment()
    models = load_models(args.gem, args.baseline, args.dtype)
    train, test = (
        cohort_cases(args.cohort, split, count, args.cache)
        for split, count in (("train", args.subjects), ("test", args.test))
    )
    regions = BRATS_REGIONS if args.cohort == "flair" else {name: (place,) for place, name in enumerate(ORGANS, 1)}
    result: dict[str, Any] = {"what": (__doc__ or "").splitlines()[0], "environment": described}
    result["adherence"] = measure_adherence(models, train, test, regions, args)
    result["training"] = measure_training(models, train, test, regions, args)
    result["protocol"] = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    result["load_average_at_end"] = environment()["load_average"]
    path = write_result(args.name, result, args.out)
    path.with_suffix(".md").write_text(document(result, regions), encoding="utf-8")
    print(document(result, regions), path, sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gem", type=Path, required=True, help="the pipeline")
    parser.add_argument("--baseline", type=Path, help="the pipeline of Make-A-Volume, for its sets")
    parser.add_argument("--runs", type=Path, required=True, help="keeps sets, networks and finished runs")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--cohort", default="flair", choices=("flair", "ct"))
    parser.add_argument("--sets", nargs="+", default=["baseline", "IC"], choices=SETS)
    parser.add_argument("--subjects", type=int, default=60, help="trained on")
    parser.add_argument("--test", type=int, default=40, help="subjects tested on, whose masks are also looked for")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--training-steps", type=int, default=400, help="of each segmentation network")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="volumes generated at once")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="mask_adherence")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.baseline and any(name.startswith("baseline") for name in args.sets):
        parser.error("--sets names the baseline; give its pipeline with --baseline, or name other --sets.")
    return args


def chosen_sets(args: argparse.Namespace, volumes: int) -> list[VolumeSet]:
    sets = {wanted.name: wanted for wanted in grid_sets(args.sampling_steps, volumes, generator=True)}
    return [sets[name] for name in args.sets]


def measure_adherence(
    models: Mapping[str, InformedSlicePipeline],
    train: Sequence[MaskedCase],
    test: Sequence[MaskedCase],
    regions: Regions,
    args: argparse.Namespace,
) -> dict[str, dict[str, dict[str, float]]]:
    """Set -> region -> Dice of what the networks find, with its interval."""
    processor = models[GEM].volume_processor
    segmenters = [kept_segmenter(train, processor, seed, args) for seed in range(args.seeds)]
    images = [load_volume(case.image) for case in test]
    masks = [mask_labels(case.mask) for case in test]
    sets = {"real": (images, masks), "another's mask": (images, masks[1:] + masks[:1])}
    for wanted in chosen_sets(args, len(test)):
        made = make_set(wanted, models, test, args.runs / "sets", batch_size=args.batch_size)
        sets[wanted.name] = (
            [load_volume(entry["image"]) for entry in made],
            [mask_labels(entry["mask"]) for entry in made],
        )
    found = {}
    for name, (volumes, wanted_labels) in sets.items():
        print(time.strftime("%H:%M:%S"), "looking for the masks in", name, flush=True)
        labels = [[segmenter(volume) for volume in volumes] for segmenter in segmenters]
        found[name] = region_dice(labels, wanted_labels, regions)
    return found


def kept_segmenter(cases: Sequence[MaskedCase], processor: Any, seed: int, args: argparse.Namespace) -> CaseSegmenter:
    """The network of a seed, trained unless it is there."""
    folder = args.runs / f"segmenter-{args.cohort}-{len(cases)}-{args.training_steps}-{seed}"
    if not folder.exists():
        print(time.strftime("%H:%M:%S"), "training", folder.name, flush=True)
        train_case_segmenter(cases, processor, settings=training_settings(args), seed=seed).save(folder)
    return CaseSegmenter.load(folder)


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    return TrainingSettings(steps=args.training_steps, learning_rate=args.learning_rate, dtype="bfloat16")


def region_dice(
    found: Sequence[Sequence[np.ndarray]], wanted: Sequence[np.ndarray], regions: Regions
) -> dict[str, dict[str, float]]:
    """Dice by region, of each volume the mean over networks.

    Args:
        found: For each network the label map of each volume.
        wanted: The masks; a region that a mask does not have is left out for its volume.
        regions: Name -> labels.
    """
    summary = {}
    for name, labels in regions.items():
        places = [place for place, mask in enumerate(wanted) if np.isin(mask, labels).any()]
        values = [np.mean([dice(maps[place], wanted[place], labels) for maps in found]) for place in places]
        if len(values) > 1:
            interval = mean_interval(np.array(values))
            summary[name] = {"mean": interval.estimate, "low": interval.low, "high": interval.high, "n": len(values)}
    return summary


def measure_training(
    models: Mapping[str, InformedSlicePipeline],
    train: Sequence[MaskedCase],
    test: Sequence[MaskedCase],
    regions: Regions,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Set -> what networks reach that were trained on it, on the real subjects, and on both."""
    processor = models[GEM].volume_processor
    real, unseen = (labelled(cases, processor) for cases in (train, test))
    results = {}
    for wanted in chosen_sets(args, len(train)):
        made = make_set(wanted, models, train, args.runs / "train-sets", batch_size=args.batch_size)
        synthetic = [example(entry["image"], mask_labels(entry["mask"]), processor) for entry in made]
        print(time.strftime("%H:%M:%S"), "training on", wanted.name, flush=True)
        results[wanted.name] = segmentation_utility(
            real,
            synthetic,
            unseen,
            regions=regions,
            spacing_mm=processor.spacing,
            folds=args.folds,
            seeds=range(args.seeds),
            training=training_settings(args),
            runs_dir=args.runs / "utility",
        ).to_dict()
    return results


def labelled(cases: Sequence[MaskedCase], processor: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels by the name of the case, the order of the generated sets."""
    return [
        example(case.image, mask_labels(case.mask), processor) for case in sorted(cases, key=lambda case: case.name)
    ]


def example(image: Any, labels: np.ndarray, processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume in [0, 1] and what is to be found in it: the brain itself is not."""
    if processor.unit != "HU":
        labels = np.where(labels == BRAIN_LABEL, 0, labels)
    return unit_volume(image, processor), torch.from_numpy(labels.astype(np.uint8))[None]


def document(result: Mapping[str, Any], regions: Regions) -> str:
    protocol = result["protocol"]
    adherence = [
        [name, *(_cell(found.get(region)) for region in regions)] for name, found in result["adherence"].items()
    ]
    metrics = ["Dice mean", *(f"Dice {region}" for region in regions)]
    first = next(iter(result["training"].values()))
    rows = [["real", *_training_cells(first["summary"]["real"], metrics)]]
    for setting in ("synthetic", "real+synthetic"):
        for name, found in result["training"].items():
            rows.append([setting.replace("synthetic", name), *_training_cells(found["summary"][setting], metrics)])
    others = [name for name in result["training"] if name != "baseline"] if "baseline" in result["training"] else []
    rows += [
        [f"{name} - baseline", *_difference_cells(result["training"], name, "baseline", metrics), "-"]
        for name in others
    ]
    paper = ", ".join(f"{name} {value:g}" for name, value in PAPER.items())
    return (
        "\n\n".join(
            [
                "# Masks and generated volumes",
                f"Cohort {protocol['cohort']}, {protocol['subjects']} training and {protocol['test']} test subjects, "
                f"{protocol['training_steps']} steps in every setting, {protocol['seeds']} seeds, {protocol['folds']} folds, "
                f"{protocol['sampling_steps']} solver steps. What is measured and how: the docstring of "
                "`benchmarks/bench_mask_adherence.py`.",
                "## Dice of the masks, found by networks that were trained on real subjects",
                markdown_table(["volumes", *regions], adherence),
                f"## Dice on real test subjects, by what was trained on (in brackets: 95 % over runs; the paper: {paper})",
                markdown_table(["trained on", *metrics, "mean - real"], rows),
            ]
        )
        + "\n"
    )


def _training_cells(summary: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    difference = summary["Dice mean"].get("difference")
    return [*(_cell(summary[name]) for name in metrics), _cell(difference, sign="+")]


def _difference_cells(
    training: Mapping[str, Any], first: str, second: str, metrics: Sequence[str], setting: str = "synthetic"
) -> list[str]:
    """Between what was trained on two generated sets alone, paired by fold and seed."""
    values = [UtilityResult(training[name]["protocol"], training[name]["runs"]) for name in (first, second)]
    differences = (np.subtract(*(each.values(setting, metric) for each in values)).tolist() for metric in metrics)
    return [_cell(mean_with_interval(each), sign="+") for each in differences]


def _cell(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    mean = found["mean"] if "mean" in found else found["value"]
    if found["low"] is None:
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


if __name__ == "__main__":
    main()
