"""How steady are FID and KID? Simulated subjects against other simulated subjects, for growing numbers of volumes.

    python benchmarks/bench_stability.py [--extractors cohort-3d deepbet] [--repeats 8]

Both sets are drawn from one pool of test subjects without overlap, so that the true distance is 0: what is reported is
bias (mean) and chance (standard deviation over the repeats). Writes stability.json and stability.md.
"""

import argparse
from pathlib import Path

import numpy as np
from record import RESULTS, environment, markdown_table, write_result

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.features import PLANES, extract_features
from voxdiff.metrics.fidelity import frechet_distance, kernel_inception_distance

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
            for number in args.numbers:
                pairs = [draw(features, number, repeat) for repeat in range(args.repeats)]
                fid = np.array([frechet_distance(*pair) for pair in pairs])
                kid = np.array([kernel_inception_distance(*pair) for pair in pairs])
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
        "repeats": args.repeats,
        "rows": results,
        "environment": environment("cpu"),
    }
    write_result("stability", result, args.out)
    (args.out / "stability.md").write_text(table, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractors", nargs="+", default=["cohort-3d", "cohort-2d", "deepbet"])
    parser.add_argument("--numbers", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--cache-dir", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--features", type=Path, default=Path("outputs/features"), help="where features are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def draw(features, number: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of two disjoint random sets of subjects."""
    order = np.random.default_rng(repeat).permutation(features.num_volumes)
    return features.of_volumes(order[:number]).values, features.of_volumes(order[number : 2 * number]).values


def spread(values: np.ndarray, digits: int = 4) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


if __name__ == "__main__":
    main()
