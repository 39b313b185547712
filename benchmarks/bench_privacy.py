"""Detection of planted copies and false alarms on held-out subjects of the simulated cohort at 64³.

    python benchmarks/bench_privacy.py [--train 200] [--planted 40] [--calibration 100] [--heldout 100] [--cache-dir DIR]

The training set holds cohort subjects of the train split. One hundred test subjects calibrate the threshold, another
hundred measure the false alarms. Training subjects are copied with each transform in turn. Each row tells which share
of a set is called a copy by the copy distance, by its ratio to the next neighbours, and by the root mean square
difference of 2x2x2 means, all with the same calibration, for how many copies the nearest reference is the right one, and
which share a network that was trained to tell the training subjects apart recognises as one of them.
Blurred and averaged held-out subjects stand for generators that copy nothing. Writes NAME.json and NAME.md below --out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from record import RESULTS, environment, markdown_table, write_result

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.copies import copy_distances
from voxdiff.metrics.privacy import copy_threshold, memorisation_test
from voxdiff.metrics.reidentification import reidentify, train_reidentifier
from voxdiff.metrics.similarity import nearest_distances

Transform = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
DISTANCES = ("copy distance", "ratio", "RMSE")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    started = environment()
    train = cohort("train", args.train, args.cache_dir)
    heldout = cohort("test", args.calibration + args.heldout, args.cache_dir)
    calibration, fresh = heldout[: args.calibration], heldout[args.calibration :]
    begin = time.process_time()
    reference = distances_to(train, calibration)
    seconds = (time.process_time() - begin) / len(calibration)
    thresholds = {name: copy_threshold(reference[name], false_alarm_rate=args.rate) for name in DISTANCES}
    reidentifier = train_reidentifier(train)
    results = {}
    for name, volumes, sources in sets(train, fresh, args.planted):
        results[name] = measure(distances_to(train, volumes), reference, thresholds, sources)
        known = reidentify(reidentifier, volumes, train, calibration)
        results[name] |= {"recognised": known.share, "verification_auc": known.verification_auc}
        print(*row(name, results[name]), sep=" | ", flush=True)
    header = ["set", "number", *DISTANCES, "right source", "AUC (ratio)", "p (ratio)", "recognised"]
    table = markdown_table(header, [row(name, result) for name, result in results.items()])
    result = {
        "what": "share of each set that is called a copy of a training subject",
        "protocol": {
            "data": "CohortDataset, t1, 64³, seeds from 0 of each split",
            "train": args.train,
            "calibration": args.calibration,
            "false_alarm_rate": args.rate,
            "seed": 0,
        },
        "thresholds": thresholds,
        "cpu_seconds_per_volume": round(seconds, 3),
        "results": results,
        "environment": started,
        "load_average_at_end": environment()["load_average"],
    }
    print(write_result(args.name, result, args.out))
    note = (
        f"Train {args.train}, calibration {args.calibration}, false alarm rate {args.rate}; thresholds "
        + ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
        + f"; {seconds:.2f} CPU seconds a volume for all distances; the network tells held-out subjects apart with an AUC of "
        + f"{results['exact']['verification_auc']:.3f}."
    )
    (args.out / f"{args.name}.md").write_text(f"{note}\n\n{table}\n", encoding="utf-8")
    print(note, table, sep="\n\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--planted", type=int, default=40, help="training subjects copied with each transform")
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.001, help="false alarm rate of the threshold")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--name", default="privacy")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def cohort(split: str, number: int, cache_dir: Path | None) -> torch.Tensor:
    subjects = CohortDataset(number, split=split, size=64, cache_dir=cache_dir, cache=False)
    return torch.stack([subjects[index]["t1"].half() for index in range(number)])


def distances_to(train: torch.Tensor, volumes: torch.Tensor) -> dict[str, torch.Tensor]:
    matches = copy_distances(volumes, train)
    return {
        "copy distance": matches.distances,
        "ratio": matches.ratios,
        "RMSE": nearest_distances(volumes, train)[0].double(),
        "nearest": matches.nearest,
    }


def measure(
    distances: dict[str, torch.Tensor],
    reference: dict[str, torch.Tensor],
    thresholds: dict[str, float],
    sources: torch.Tensor | None,
) -> dict[str, object]:
    test = memorisation_test(distances["ratio"].numpy(), reference["ratio"].numpy())
    return {
        "number": len(distances["nearest"]),
        "flagged": {name: float((distances[name] < thresholds[name]).double().mean()) for name in DISTANCES},
        "median": {name: float(distances[name].median()) for name in DISTANCES},
        "right_source": None if sources is None else float((distances["nearest"] == sources).double().mean()),
        "auc": test.auc,
        "p_value": test.p_value,
    }


def row(name: str, result: dict) -> list[str]:
    flagged = [f"{100 * result['flagged'][distance]:.0f} %" for distance in DISTANCES]
    source = "" if result["right_source"] is None else f"{100 * result['right_source']:.0f} %"
    test = [f"{result['auc']:.2f}", f"{result['p_value']:.1e}"]
    return [name, str(result["number"]), *flagged, source, *test, f"{100 * result['recognised']:.0f} %"]


def sets(
    train: torch.Tensor, fresh: torch.Tensor, planted: int
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Name, volumes, and the training index of each: the anchors, which copy nothing, then the planted copies."""
    yield "held-out", fresh, None
    half = fresh[: len(fresh) // 4 * 2]
    yield "held-out, blurred 1 voxel", torch.stack([blurred(volume, 1.0) for volume in half]), None
    yield "held-out, blurred 2 voxels", torch.stack([blurred(volume, 2.0) for volume in half]), None
    yield "means of 2 held-out", (half[0::2].float() + half[1::2].float()) / 2, None
    for name, transform in transforms().items():
        generator = torch.Generator().manual_seed(0)
        yield name, torch.stack([transform(train[i].float(), generator) for i in range(planted)]), torch.arange(planted)


def transforms() -> dict[str, Transform]:
    named: dict[str, Transform] = {"exact": lambda volume, _: volume}
    for axes in ((1,), (2,), (3,), (1, 2, 3)):
        named["flip " + "".join("xyz"[axis - 1] for axis in axes)] = lambda volume, _, axes=axes: volume.flip(axes)
    for scale in (0.8, 1.2):
        named[f"scale {scale}"] = lambda volume, _, scale=scale: (scale * volume).clamp(0, 1)
    named["0.8 of it + 0.1"] = lambda volume, _: 0.8 * volume + 0.1
    for gamma in (0.7, 1.4):
        named[f"gamma {gamma}"] = lambda volume, _, gamma=gamma: volume**gamma
    for voxels in (1, 2, 4):
        named[f"shift {voxels} along x, y, z"] = lambda volume, random, voxels=voxels: shifted(volume, voxels, random)
    for spread in (0.02, 0.05):
        named[f"noise {spread}"] = lambda volume, random, spread=spread: noised(volume, spread, random)
    for voxels in (1.0, 2.0):
        named[f"warp, largest {voxels:.0f} voxels"] = lambda volume, random, voxels=voxels: warped(
            volume, random, largest=voxels
        )
    for voxels in (1.0, 2.0):
        named[f"warp, mean {voxels:.0f} voxels"] = lambda volume, random, voxels=voxels: warped(
            volume, random, mean=voxels
        )
    named["blur 1 voxel"] = lambda volume, _: blurred(volume, 1.0)
    named["flip x, shift 2, warp 1, gamma 0.8, noise 0.02"] = combined
    return named


def combined(volume: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return noised(shifted(warped(volume.flip(1), random, largest=1.0), 2, random) ** 0.8, 0.02, random)


def shifted(volume: torch.Tensor, voxels: int, random: torch.Generator) -> torch.Tensor:
    """Moved by as many voxels along each axis, forwards or backwards; the cohort's border is empty."""
    steps = [voxels if torch.rand((), generator=random) < 0.5 else -voxels for _ in range(3)]
    return volume.roll(steps, dims=(1, 2, 3))


def noised(volume: torch.Tensor, spread: float, random: torch.Generator) -> torch.Tensor:
    return (volume + spread * torch.randn(volume.shape, generator=random)).clamp(0, 1)


def warped(
    volume: torch.Tensor, random: torch.Generator, *, largest: float | None = None, mean: float | None = None
) -> torch.Tensor:
    """Resampled at a smooth displacement (Gaussian of 8 voxels), of this largest or mean size within the brain."""
    size = volume.shape[-1]
    field = torch.cat([blurred(torch.randn((1, size, size, size), generator=random), 8.0) for _ in range(3)])
    lengths = field.norm(dim=0)[volume[0] > 0.1]
    field = field * (largest / lengths.max() if largest is not None else mean / lengths.mean())
    identity = F.affine_grid(torch.eye(3, 4)[None], [1, 1, size, size, size], align_corners=True)
    grid = identity + (2 / (size - 1) * field).flip(0).permute(1, 2, 3, 0)
    return F.grid_sample(volume[None], grid, align_corners=True, padding_mode="border")[0]


def blurred(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = int(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    result = volume.float()[None]
    for axis in range(3):
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = -1, reach
        result = F.conv3d(result, (kernel / kernel.sum()).reshape(1, 1, *shape), padding=padding)
    return result[0]


if __name__ == "__main__":
    main()
