"""The nearest real volume of every synthetic one by MS-SSIM: recall of the coarse choice, speed, and the whole search.

    python benchmarks/bench_nearest.py [--parts rate recall full] [--device cuda] [--threads 2] [--cache-dir DIR]

rate    pairs a second: all pairs on the coarse scales, pairs in full (one volume with 32, as the search does), and one
        pair at a time by MONAI, at 64 and 128 voxels a side. Wall time, and on a CPU the time that this process was
        given: on a shared machine the second says what an idle one would take.
recall  against brute force: how often the K best of the coarse scales hold the nearest volume, and how much MS-SSIM is
        lost where they do not. Queries are simulated subjects that are not in the set; the same blurred, noised and
        darkened; and noised copies of volumes of the set.
full    500 subjects against 1262 others, end to end, volumes read from the simulator's cache; --size 128 brings them to
        128 voxels a side first, which costs reading time but not similarity time.

Parts that are not run keep what an earlier run measured. Writes NAME.json and NAME.md below --out.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import RESULTS, PeakMemory, environment, markdown_table, write_result

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.nearest import COARSE_SCALES, DEFAULT_CANDIDATES, nearest_by_ms_ssim
from voxdiff.metrics.pyramid_similarity import (
    MsSsimSettings,
    SimilarityPyramid,
    full_precision,
    pooled,
    similarity_matrix,
)

SETTINGS = MsSsimSettings()
SKIPPED = SETTINGS.scales - COARSE_SCALES
NUMBERS = (1, 4, 8, 16, 32, 64)
REAL, SYNTHETIC = 1262, 500
# One H100 SXM, from its data sheet (67 TFLOP/s in float32 without tensor cores, 3.35 TB/s), at the shares that plain
# matrix products and elementwise kernels are taken to reach.
GPU_FLOPS, GPU_BYTES = 0.5 * 67e12, 0.7 * 3.35e12


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    path = args.out / f"{args.name}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    parts = {"rate": rate, "recall": recall, "full": full}
    with full_precision():
        for part in args.parts:
            started = environment(args.device)
            measured = parts[part](args)
            measured["environment"] = started | {"load_average_at_end": environment()["load_average"]}
            results[part if part != "full" else f"full-{args.size}"] = measured
            results["projection"] = projection()
            write_result(args.name, {"what": __doc__.splitlines()[0], "results": results}, args.out)
            text = report(results)
            path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["rate", "recall", "full"], default=["rate", "recall", "full"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-dir", default="outputs/cohort", help="simulated subjects are read from and kept in it")
    parser.add_argument("--size", type=int, choices=[64, 128], default=64, help="voxels a side in the full search")
    parser.add_argument("--candidates", type=int, default=DEFAULT_CANDIDATES, help="in the full search; 0: all")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB for synthetic volumes in the full search")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="nearest", help="name of the files written")
    return parser.parse_args()


class Subjects:
    """T1w volumes of simulated subjects, read when asked for."""

    def __init__(self, first: int, number: int, args: argparse.Namespace, size: int = 64) -> None:
        self.first, self.number, self.size = first, number, size
        self.cohort = CohortDataset(first + number, split="train", size=64, cache_dir=args.cache_dir, cache=False)
        self.fingerprint = f"{first} {number} {size}"

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> torch.Tensor:
        volume = self.cohort[self.first + place]["t1"]
        return volume if self.size == 64 else F.interpolate(volume[None], size=self.size, mode="trilinear")[0]

    def stacked(self) -> torch.Tensor:
        """All of them, (number, 1, x, y, z)."""
        return torch.stack([self[place] for place in range(len(self))])


def timed(function: Callable[[], Any], device: str, pairs: int, rounds: int = 3) -> dict[str, float]:
    """Milliseconds a pair, best of some rounds."""
    function()
    wall, given = [], []
    for _ in range(rounds):
        synchronise(device)
        before, before_given = time.perf_counter(), time.process_time()
        function()
        synchronise(device)
        wall.append(time.perf_counter() - before)
        given.append(time.process_time() - before_given)
    times = {"wall_ms": 1e3 * min(wall) / pairs}
    return times if device.startswith("cuda") else times | {"cpu_ms": 1e3 * min(given) / pairs}


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def rate(args: argparse.Namespace) -> dict[str, Any]:
    measured: dict[str, Any] = {"device": args.device}
    threads = [args.threads] if args.device != "cpu" else sorted({1, args.threads})
    for size in (64, 128):
        volumes = Subjects(0, 32 if size == 64 else 8, args, size).stacked().to(args.device)
        for number in threads:
            torch.set_num_threads(number)
            measured[f"{size}³, {number} thread(s)"] = rates_of(volumes, args.device)
        torch.set_num_threads(args.threads)
    return measured


def rates_of(volumes: torch.Tensor, device: str) -> dict[str, Any]:
    coarse = SimilarityPyramid(pooled(volumes, SKIPPED).repeat(8, 1, 1, 1, 1), SETTINGS, skipped=SKIPPED)
    pyramid = SimilarityPyramid(volumes, SETTINGS)
    one, one_coarse, pair = pyramid[:1], coarse[:1], (volumes[:1], volumes[1:2])
    return {
        "coarse": timed(lambda: one_coarse.similarities(coarse), device, len(coarse)),
        "full": timed(lambda: one.similarities(pyramid), device, len(pyramid)),
        "statistics of a volume": timed(lambda: SimilarityPyramid(volumes[:1], SETTINGS), device, 1),
        "monai": timed(lambda: ms_ssim_by_monai(*pair), device, 1, rounds=2),
        "difference_to_monai": (one.similarities(pyramid[1:2]) - ms_ssim_by_monai(*pair)).abs().item(),
    }


def ms_ssim_by_monai(volumes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    from monai.metrics.regression import compute_ms_ssim

    return compute_ms_ssim(
        volumes,
        others,
        spatial_dims=3,
        data_range=SETTINGS.data_range,
        kernel_size=SETTINGS.kernel_size,
        kernel_sigma=SETTINGS.sigma,
        weights=SETTINGS.weights,
    )[:, 0]


def recall(args: argparse.Namespace) -> dict[str, Any]:
    references = Subjects(0, 400, args).stacked()
    unseen, known = Subjects(REAL, 60, args).stacked(), references[:40]
    noise = 0.1 * torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    sets = {
        "other subjects": unseen,
        "blurred (3³ mean)": F.avg_pool3d(unseen[:40], 3, 1, 1),
        "noised (sigma 0.1)": (unseen[:40] + noise).clamp(0, 1),
        "darkened (x 0.7)": 0.7 * unseen[:40],
        "noised copies (sigma 0.1)": (known + noise).clamp(0, 1),
    }
    measured = {}
    for name, volumes in sets.items():
        measured[f"{len(volumes)} {name} among 400"] = recall_of(volumes, references, args.device)
        print(name, flush=True)
    every = Subjects(0, REAL, args).stacked()
    measured[f"20 other subjects among {REAL}"] = recall_of(unseen[:20], every, args.device)
    return measured


def recall_of(volumes: torch.Tensor, references: torch.Tensor, device: str) -> dict[str, Any]:
    started = time.process_time()
    brute = nearest_by_ms_ssim(volumes, references, candidates=None, device=device)
    seconds = time.process_time() - started
    exact = torch.empty_like(brute.candidate_similarities)
    exact.scatter_(1, brute.candidates, brute.candidate_similarities)
    pyramids = (
        SimilarityPyramid(pooled(one, SKIPPED).to(device), SETTINGS, skipped=SKIPPED) for one in (volumes, references)
    )
    ranked = similarity_matrix(*pyramids).cpu().argsort(dim=1, descending=True, stable=True)
    by_number = {}
    for number in NUMBERS:
        best = exact.gather(1, ranked[:, :number]).max(dim=1).values
        missed = ~(ranked[:, :number] == brute.index[:, None]).any(dim=1)
        loss = (brute.similarity - best)[missed]
        by_number[number] = {
            "recall": 1 - missed.float().mean().item(),
            "largest_loss": loss.max().item() if len(loss) else 0.0,
        }
    rank = (ranked == brute.index[:, None]).float().argmax(dim=1)
    return {
        "candidates": by_number,
        "worst_coarse_rank": int(rank.max()) + 1,
        "ms_ssim_of_the_nearest": brute.similarity.mean().item(),
        "brute_force_cpu_seconds": seconds,
    }


def full(args: argparse.Namespace) -> dict[str, Any]:
    real, synthetic = Subjects(0, REAL, args, args.size), Subjects(REAL, SYNTHETIC, args, args.size)
    finished: dict[str, float] = {}
    started, given = time.perf_counter(), time.process_time()

    def note(stage: str, done: int, total: int) -> None:
        finished[stage] = time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        matches = nearest_by_ms_ssim(
            synthetic,
            real,
            candidates=args.candidates or None,
            device=args.device,
            memory_gib=args.memory,
            cache_dir=folder,
            progress=note,
        )
    return {
        "device": args.device,
        "size": args.size,
        "synthetic": len(synthetic),
        "real": len(real),
        "candidates": matches.candidates.shape[1],
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - given,
        "stage_ends_at_seconds": finished,
        "peak_memory_growth_mb": peak.growth_mb,
        "median_similarity": matches.similarity.median().item(),
        "highest_similarity": matches.similarity.max().item(),
    }


def projection(size: int = 128) -> dict[str, Any]:
    """Seconds of one GPU for all pairs and for the candidates, from operations and bytes. Not measured."""
    operations = bytes_moved = 0.0
    for scale in range(SETTINGS.scales):
        side = size // 2**scale
        kept = side - SETTINGS.kernel_size + 1
        operations += 2 * (side**3 * kept + side**2 * kept**2 + side * kept**3)
        # One after the other: product, three smoothings, two products of means, four passes of arithmetic, the mean.
        bytes_moved += 4 * 21 * side**3
    seconds = max(operations / GPU_FLOPS, bytes_moved / GPU_BYTES) + min(
        operations / GPU_FLOPS, bytes_moved / GPU_BYTES
    )
    return {
        "size": size,
        "gflop_a_pair": operations / 1e9,
        "megabytes_a_pair": bytes_moved / 1e6,
        "assumed_tflops": GPU_FLOPS / 1e12,
        "assumed_tb_per_s": GPU_BYTES / 1e12,
        "ms_a_pair": 1e3 * seconds,
        "all_pairs_seconds": REAL * SYNTHETIC * seconds,
        "candidate_pairs_seconds": DEFAULT_CANDIDATES * SYNTHETIC * seconds,
        "note": "projected, not measured; without reading the volumes",
    }


def report(results: dict[str, Any]) -> str:
    parts = [f"# {__doc__.splitlines()[0]}", f"`{SETTINGS}`; the coarse scales are the last {COARSE_SCALES}."]
    if "rate" in results:
        parts.append(rate_table(results["rate"]))
    if "recall" in results:
        parts.append(recall_table(results["recall"]))
    parts += [full_sentence(value) for name, value in results.items() if name.startswith("full-")]
    parts.append(projection_sentence(results["projection"]))
    return "\n\n".join(parts)


def rate_table(measured: dict[str, Any]) -> str:
    rows = []
    for name, values in measured.items():
        if not name[0].isdigit():
            continue
        for kind in ("coarse", "full", "statistics of a volume", "monai"):
            times = values[kind]
            given = times.get("cpu_ms", math.nan)
            pace = 1e3 / times.get("cpu_ms", times["wall_ms"])
            rows.append([f"{name}: {kind}", f"{times['wall_ms']:.4g}", f"{given:.4g}", f"{pace:.4g}"])
    load = measured["environment"]["load_average"][0]
    difference = max(value["difference_to_monai"] for name, value in measured.items() if name[0].isdigit())
    table = markdown_table(["grid, threads: what", "wall ms", "CPU ms", "a second"], rows)
    return (
        f"## Rate on {measured['device']}\n\n{table}\n\nLoad average {load} on {measured['environment']['cores']} cores; "
        f"the last column is by CPU time where there is one. Largest difference to MONAI: {difference:.1e}."
    )


def recall_table(measured: dict[str, Any]) -> str:
    rows = []
    for name, values in measured.items():
        if name == "environment":
            continue
        by_number = {int(number): value for number, value in values["candidates"].items()}
        cells = [f"{by_number[number]['recall']:.3f} ({by_number[number]['largest_loss']:.4f})" for number in NUMBERS]
        rows.append([name, *cells, str(values["worst_coarse_rank"])])
    table = markdown_table(["queries", *(f"K = {number}" for number in NUMBERS), "worst rank"], rows)
    return (
        "## Recall of the nearest neighbour among the K best of the coarse scales\n\n"
        f"In brackets the largest loss of MS-SSIM where it is missed.\n\n{table}"
    )


def full_sentence(measured: dict[str, Any]) -> str:
    ends = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in measured["stage_ends_at_seconds"].items())
    environment_ = measured["environment"]
    return (
        f"## {measured['synthetic']} against {measured['real']} at {measured['size']}³, end to end\n\n"
        f"{measured['candidates']} candidates on {measured['device']}: {measured['wall_seconds']:.0f} s of wall time, "
        f"{measured['cpu_seconds']:.0f} s of CPU time (stages ended at: {ends}), {measured['peak_memory_growth_mb']:.0f} "
        f"MiB of memory; {environment_['threads']} thread(s), load average {environment_['load_average'][0]} at the start "
        f"and {environment_['load_average_at_end'][0]} at the end on {environment_['cores']} cores. MS-SSIM of the "
        f"nearest: median {measured['median_similarity']:.4f}, highest {measured['highest_similarity']:.4f}."
    )


def projection_sentence(values: dict[str, Any]) -> str:
    return (
        f"## Projected (not measured): one H100 at {values['size']}³\n\n{values['gflop_a_pair']:.2f} GFLOP and "
        f"{values['megabytes_a_pair']:.0f} MB a pair in full; at an assumed {values['assumed_tflops']:.0f} TFLOP/s and "
        f"{values['assumed_tb_per_s']:.1f} TB/s, one after the other, {values['ms_a_pair']:.2f} ms a pair: "
        f"{values['all_pairs_seconds']:.0f} s for all {SYNTHETIC} x {REAL} pairs, {values['candidate_pairs_seconds']:.0f} "
        f"s for {DEFAULT_CANDIDATES} candidates each, without reading the volumes."
    )


if __name__ == "__main__":
    main()
