"""How steady are FID and KID? Simulated subjects against other simulated subjects, for growing numbers of volumes.

    python benchmarks/bench_stability.py [--extractors cohort-3d deepbet] [--draws 100]

Both sets are drawn from one pool of test subjects without overlap, so that the true distance is 0: what is reported is
bias (mean) and chance (standard deviation over the draws). Draws share the pool: two sets of half of it use all of it
each time and differ by the split only. Writes stability.json and stability.md.
"""

import argparse
from pathlib import Path

import numpy as np
from record import RESULTS, environment, markdown_table, write_result

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.features import PLANES, FeatureSet, extract_features
from voxdiff.metrics.fidelity import frechet_distance, polynomial_kernel

SIZE = 64


def main() -> None:
    args = parse_arguments()
    subjects = CohortDataset(2 * max(args.numbers), split="test", size=SIZE, cache_dir=args.cache_dir, cache=False)
    volumes = [subject["t1"] for subject in subjects]
    results, rows = [], []
    for name in args.extractors:
        extractor = load_extractor(name)
        for plane in [None] if extractor.spatial_dims == 3 else list(PLANES):
            features = extract_features(extractor, volumes, plane=plane, cache_dir=args.features)
            sums = kernel_sums(features)
            for number in args.numbers:
                draws = [draw(features.num_volumes, number, seed) for seed in range(args.draws)]
                fid = np.array(
                    [frechet_distance(*(features.of_volumes(part).values for part in parts)) for parts in draws]
                )
                kid = np.array([kid_of_sums(sums, *parts, len(features.values) // len(sums)) for parts in draws])
                row = {"extractor": name, "plane": plane, "n": number, "dim": features.values.shape[1]}
                row |= {"fid": [fid.mean(), fid.std(ddof=1)], "kid": [kid.mean(), kid.std(ddof=1)]}
                results.append(row)
                label = name if plane is None else f"{name}, {plane}"
                rows.append([label, str(number), spread(fid), spread(kid, 5)])
                print(rows[-1], flush=True)
    table = markdown_table(["extractor", "N", "FID, mean ± sd", "KID, mean ± sd"], rows)
    result = {
        "what": "FID and KID of simulated subjects against other simulated subjects",
        "pool": {"split": "test", "subjects": len(volumes), "grid": SIZE, "contrast": "t1"},
        "draws": args.draws,
        "rows": results,
        "environment": environment("cpu"),
    }
    write_result("stability", result, args.out)
    (args.out / "stability.md").write_text(f"{description(args, len(volumes))}\n{table}\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractors", nargs="+", default=["cohort-3d", "cohort-2d", "deepbet"])
    parser.add_argument("--numbers", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--cache-dir", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--features", type=Path, default=Path("outputs/features"), help="where features are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def description(args: argparse.Namespace, pool: int) -> str:
    return (
        f"{args.draws} draws of two disjoint sets of N subjects from one pool of {pool} (simulated T1w, test split, "
        f"{SIZE}³), so that the true distance is 0. Draws share the pool; N = {max(args.numbers)} uses all of it each "
        "time, so that its draws are splits of the same subjects. sd: standard deviation over the draws.\n"
    )


def draw(pool: int, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of two disjoint random sets of subjects."""
    order = np.random.default_rng(seed).permutation(pool)
    return order[:number], order[number : 2 * number]


def kernel_sums(features: FeatureSet) -> np.ndarray:
    """KID's kernel summed over the rows of each two subjects, (subjects, subjects); no row with itself."""
    rows = features.values.reshape(features.num_volumes, -1, features.values.shape[1])
    sums = np.empty((len(rows), len(rows)))
    for place, own in enumerate(rows):
        kernel = polynomial_kernel(own, features.values)
        sums[place] = kernel.reshape(len(own), len(rows), -1).sum((0, 2))
        sums[place, place] -= polynomial_kernel(own, own).trace()
    return sums


def kid_of_sums(sums: np.ndarray, first: np.ndarray, second: np.ndarray, rows: int) -> float:
    """`kernel_inception_distance` of two sets of subjects with so many rows each."""
    within = sum(
        sums[np.ix_(part, part)].sum() / (len(part) * rows * (len(part) * rows - 1)) for part in (first, second)
    )
    return float(within - 2 * sums[np.ix_(first, second)].mean() / rows**2)


def spread(values: np.ndarray, digits: int = 4) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


if __name__ == "__main__":
    main()
