"""Does utility rank generators as it must? Tumours of the digital cohort, segmented by networks trained on three sets.

    python benchmarks/bench_utility.py [--subjects 24] [--steps 200] [--cache FOLDER]

"real" is the cohort's first training subjects; "ideal" is other subjects of the same simulator, which is what a perfect
generator gives; "blurred" is the ideal set under a Gaussian of 1.5 voxels, label maps as they were. The test set is the
cohort's own test split. FLAIR at 32 voxels a side (6.5 mm), the whole tumour. Expected: the ideal set is as good as the
real one, the blurred one worse, and ideal volumes added to the real ones help. Writes utility.json and utility.md.
"""

import argparse
import time
from pathlib import Path

import torch
from record import RESULTS, environment, markdown_table, write_result
from scipy.ndimage import gaussian_filter

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.downstream import TrainingSettings
from voxdiff.metrics.utility import segmentation_utility

SIZE = 32
SPACING_MM = (6.5, 6.5, 6.5)
BLUR_SIGMA = 1.5
SYNTHETIC_SEED = 1000
METRICS = ("Dice tumour", "HD95 mm tumour")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    described = environment()
    real = tumours(args.subjects, "train", 0, args.cache)
    ideal = tumours(args.subjects, "train", SYNTHETIC_SEED, args.cache)
    test = tumours(args.subjects, "test", 0, args.cache)
    blurred = [(blur(image), label) for image, label in ideal]
    training = TrainingSettings(steps=args.steps, learning_rate=args.learning_rate, dtype=args.dtype)
    started, results = time.perf_counter(), {}
    for name, synthetic in (("ideal", ideal), ("blurred", blurred)):
        results[name] = segmentation_utility(
            real,
            synthetic,
            test,
            regions={"tumour": (1,)},
            spacing_mm=SPACING_MM,
            folds=args.folds,
            seeds=range(args.seeds),
            training=training,
            runs_dir=args.cache / "runs",
        ).to_dict()
    seconds = time.perf_counter() - started
    table = markdown_table(["trained on", "Dice", "HD95 mm", "Dice - real", "HD95 - real"], rows(results))
    ranking = {name: results[name]["summary"]["synthetic"]["Dice tumour"]["value"] for name in ("ideal", "blurred")} | {
        "real": results["ideal"]["summary"]["real"]["Dice tumour"]["value"]
    }
    result = {"what": __doc__.splitlines()[0], "training_seconds": round(seconds, 1), "synthetic_only_dice": ranking}
    result |= {"results": results, "environment": described, "load_average_at_end": environment()["load_average"]}
    path = write_result("utility", result, args.out)
    note = (
        f"{args.subjects} subjects a set, {SIZE} voxels a side, {args.steps} steps in every setting, {args.folds} folds by "
        f"{args.seeds} seeds, {args.subjects} test subjects. Mean (95 % interval over runs); differences are paired by "
        "fold and seed. The runs share subjects, so that the intervals are narrower than those of independent runs."
    )
    path.with_suffix(".md").write_text(f"{note}\n\n{table}\n", encoding="utf-8")
    print(table, path, sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, required=True, help="keeps simulated subjects and finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def tumours(count: int, split: str, seed: int, cache: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """FLAIR volumes with the map of the whole tumour."""
    cohort = CohortDataset(
        count, split=split, seed=seed, size=SIZE, contrasts=("flair",), lesions=True, cache_dir=cache
    )
    items = [cohort[index] for index in range(count)]
    return [(item["flair"], (item["lesion"] > 0).to(torch.uint8)) for item in items]


def blur(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(image[0].numpy(), BLUR_SIGMA))[None]


def rows(results: dict) -> list[list[str]]:
    """One row a training set: real, ideal, blurred, and the mixes."""
    found = [["real", *cells(results["ideal"]["summary"]["real"])]]
    for setting in ("synthetic", "real+synthetic"):
        for name, result in results.items():
            found.append([setting.replace("synthetic", name), *cells(result["summary"][setting])])
    return found


def cells(metrics: dict) -> list[str]:
    entries = [metrics[name] for name in METRICS]
    return [interval(entry) for entry in entries] + [interval(entry.get("difference")) for entry in entries]


def interval(entry: dict | None) -> str:
    if entry is None:
        return "-"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


if __name__ == "__main__":
    main()
