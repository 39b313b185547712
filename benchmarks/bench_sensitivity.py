"""What does each metric see? The same statistics on simulated subjects that were damaged in known ways.

    python benchmarks/bench_sensitivity.py [--extractors cohort-3d cohort-2d deepbet] [--number 80]

The reference is one set of test subjects, each candidate is made from another one: left as it is (the floor), blurred,
noisy, with shifted intensities, in a wrong orientation, with repeated subjects, with one of the two anatomies missing.
A cell is the metric's value; "moves" counts its distance from the floor in standard deviations of the floor, which come
from repeated draws of undamaged subjects. Writes sensitivity.json and sensitivity.md.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, environment, markdown_table, write_result

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.anchors import gaussian_blur
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.features import extract_features
from voxdiff.metrics.fidelity import frechet_distance, gaussian_mmd, inception_score, kernel_inception_distance
from voxdiff.metrics.manifold import density_coverage, precision_recall
from voxdiff.metrics.similarity import pairwise_ms_ssim

SIZE = 64
FLOOR_DRAWS = 8
POOL = 5  # times as many subjects as in a set, from which the floor is drawn
Transform = Callable[[torch.Tensor, int], torch.Tensor]


def add_noise(volume: torch.Tensor, seed: int, level: float) -> torch.Tensor:
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed))
    return (volume + level * noise).clamp(0, 1)


TRANSFORMS: dict[str, Transform] = {
    "blur 0.5 voxel": lambda volume, seed: gaussian_blur(volume, 0.5),
    "blur 1 voxel": lambda volume, seed: gaussian_blur(volume, 1.0),
    "blur 2 voxels": lambda volume, seed: gaussian_blur(volume, 2.0),
    "noise 0.02": lambda volume, seed: add_noise(volume, seed, 0.02),
    "noise 0.05": lambda volume, seed: add_noise(volume, seed, 0.05),
    "noise 0.10": lambda volume, seed: add_noise(volume, seed, 0.10),
    "intensity x 0.9": lambda volume, seed: volume * 0.9,
    "intensity + 0.05 inside": lambda volume, seed: (volume + 0.05 * (volume > 0.1)).clamp(0, 1),
    "gamma 0.8": lambda volume, seed: volume**0.8,
    "flipped left-right": lambda volume, seed: volume.flip(1),
    "flipped front-back": lambda volume, seed: volume.flip(2),
    "flipped up-down": lambda volume, seed: volume.flip(3),
    "axes y and z exchanged": lambda volume, seed: volume.transpose(2, 3).contiguous(),
    "shifted by 3 voxels": lambda volume, seed: volume.roll((3,), (2,)),
}


def main() -> None:
    args = parse_arguments()
    subjects = list(CohortDataset(POOL * args.number, split="test", size=SIZE, cache_dir=args.cache_dir, cache=False))
    volumes = [subject["t1"] for subject in subjects]
    mni = [index for index, subject in enumerate(subjects) if subject["factors"]["template"] == "mni152"]
    reference, candidate = range(args.number), range(args.number, 2 * args.number)
    sets = {"undamaged": [volumes[index] for index in candidate]}
    for name, transform in TRANSFORMS.items():
        sets[name] = [transform(volumes[index], index) for index in candidate]
    for distinct in (args.number // 4, args.number // 20, 1):
        repeated = [candidate[place % distinct] for place in range(args.number)]
        sets[f"{distinct} subject(s) repeated"] = [volumes[index] for index in repeated]
    sets["one of two anatomies only"] = [volumes[i] for i in [i for i in mni if i >= args.number][: args.number]]

    results, text = {}, []
    for name in args.extractors:
        extractor = load_extractor(name)
        plane = None if extractor.spatial_dims == 3 else "axial"
        settings = {"plane": plane, "cache_dir": args.features}
        real = extract_features(extractor, [volumes[index] for index in reference], **settings)
        everyone = extract_features(extractor, volumes, **settings)
        floors = [floor_draw(everyone, args.number, draw) for draw in range(FLOOR_DRAWS)]
        measured = {kind: measure(real, extract_features(extractor, found, **settings)) for kind, found in sets.items()}
        spread = {metric: float(np.std([floor[metric] for floor in floors], ddof=1)) for metric in floors[0]}
        results[name] = {"plane": plane, "values": measured, "floor_sd": spread, "floors": floors}
        text.append(f"### {name}{', axial slices' if plane else ''}\n\n{as_table(measured, spread)}")
        print(text[-1], flush=True)
    diversity = {
        kind: float(pairwise_ms_ssim(torch.stack(found[:100]), max_pairs=100).mean()) for kind, found in sets.items()
    }
    rows = [[kind, f"{value:.3f}"] for kind, value in diversity.items()]
    text.append(f"### MS-SSIM over pairs within the set\n\n{markdown_table(['set', 'MS-SSIM'], rows)}")
    result = {
        "what": "metrics of simulated subjects damaged in known ways",
        "number": args.number,
        "grid": SIZE,
        "extractors": results,
        "ms_ssim_pairs": diversity,
        "environment": environment("cpu"),
    }
    write_result("sensitivity", result, args.out)
    (args.out / "sensitivity.md").write_text("\n".join(text), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractors", nargs="+", default=["cohort-3d", "cohort-2d", "deepbet"])
    parser.add_argument("--number", type=int, default=80, help="volumes of each set")
    parser.add_argument("--cache-dir", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--features", type=Path, default=Path("outputs/features"), help="where features are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def floor_draw(features, number: int, draw: int) -> dict[str, float]:
    order = np.random.default_rng(draw).permutation(features.num_volumes)
    return measure(features.of_volumes(order[:number]), features.of_volumes(order[number : 2 * number]))


def measure(real, synthetic) -> dict[str, float]:
    near, full = precision_recall(real.values, synthetic.values), density_coverage(real.values, synthetic.values)
    found = {
        "FID": frechet_distance(real.values, synthetic.values),
        "KID": kernel_inception_distance(real.values, synthetic.values),
        "MMD": gaussian_mmd(real.values, synthetic.values),
        "precision": near.precision,
        "recall": near.recall,
        "density": full.density,
        "coverage": full.coverage,
    }
    if synthetic.probabilities is not None:
        found["IS"] = inception_score(synthetic.probabilities)
    return {name: float(value) for name, value in found.items()}


def as_table(measured: dict[str, dict[str, float]], spread: dict[str, float]) -> str:
    metrics = list(spread)
    floor = measured["undamaged"]
    rows = []
    for kind, values in measured.items():
        cells = [kind]
        for metric in metrics:
            moves = (values[metric] - floor[metric]) / spread[metric] if spread[metric] else 0.0
            cells.append(f"{values[metric]:.3g} ({moves:+.0f})" if kind != "undamaged" else f"{values[metric]:.3g}")
        rows.append(cells)
    return markdown_table(["set", *metrics], rows)


if __name__ == "__main__":
    main()
