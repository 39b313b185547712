"""Time and memory of our 3D Haar transform beside ptwt's and, with --official, the one of the official WDM repository.

    python benchmarks/bench_wavelets.py [--official CHECKOUT_OF_WDM_3D] [--sizes 128 256]

What is timed: analysis of one fp32 volume of one channel into eight bands, and synthesis back, each without gradients.
The implementations take turns within one process (A B C A B C …), so that a machine that slows down slows all of them;
minimum and median over the rounds, and the median of ours divided by theirs round by round. Memory: the growth of the
process's peak resident size over what it held before (input volume included), each implementation in a process of its
own, one analysis and synthesis after a first one on a small volume. Every result is compared with ptwt's bands and with
the input. Needs ptwt (pip install ptwt). Writes NAME.json below --out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import RESULTS, PeakMemory, environment, markdown_table, write_result

from voxdiff.wavelets import haar_analysis, haar_synthesis

Transform = tuple[Callable, Callable]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    names = ["voxdiff", "ptwt"] + (["official"] if args.official else [])
    if args.memory_of:
        print(json.dumps(memory_growth(args.memory_of, args.sizes[0], args.official)))
        return
    started = environment()
    results, rows = {}, []
    for size in args.sizes:
        measured = time_in_turns(names, size, args)
        for name in names:
            measured[name]["peak_growth_mb"] = round(memory_in_own_process(name, size, args), 1)
            rows.append(row(size, name, measured))
        results[str(size)] = measured
    print(markdown_table(["grid", "transform", "min ms", "median ms", "ours / theirs", "peak growth MB"], rows))
    slower = [
        f"{size}: {name}" for size, names_ in results.items() for name, value in names_.items() if loses(value, names_)
    ]
    print(f"voxdiff is beaten at {', '.join(slower)}" if slower else "voxdiff is fastest and smallest everywhere")
    protocol = {"dtype": "float32", "channels": 1, "rounds": args.rounds, "threads": args.threads, "seed": 0}
    result = {"what": "3D Haar analysis and synthesis", "protocol": protocol, "results": results}
    result |= {"environment": started, "load_average_at_end": environment()["load_average"]}
    print(write_result(args.name, result, args.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="checkout of the official repository (wdm-3d)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="bench_wavelets", help="name of the file written")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_transform(name: str, official: Path | None) -> Transform:
    """Analysis of ``(1, 1, x, y, z)`` into whatever the implementation returns, and its synthesis."""
    if name == "voxdiff":
        return haar_analysis, haar_synthesis
    if name == "ptwt":
        import ptwt

        return lambda x: ptwt.wavedec3(x, "haar", level=1, mode="zero"), lambda bands: ptwt.waverec3(bands, "haar")
    sys.path.insert(0, str(official))
    from DWT_IDWT.DWT_IDWT_layer import DWT_3D, IDWT_3D

    analysis, synthesis = DWT_3D("haar"), IDWT_3D("haar")
    return analysis, lambda bands: synthesis(*bands)


def as_bands(name: str, bands) -> torch.Tensor:
    """The eight bands ``(8, x, y, z)`` in our order."""
    if name == "voxdiff":
        return bands[0]
    if name == "ptwt":
        low, details = bands
        keys = sorted(details)
        return torch.cat([low.reshape(1, *low.shape[-3:]), *(details[k].reshape(1, *low.shape[-3:]) for k in keys)])
    return torch.cat([band[0] for band in bands])


@torch.no_grad()
def time_in_turns(names: list[str], size: int, args: argparse.Namespace) -> dict[str, dict]:
    transforms = {name: make_transform(name, args.official) for name in names}
    volume = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    reference = as_bands("ptwt", transforms["ptwt"][0](volume))
    errors = {}
    for name, (analysis, synthesis) in transforms.items():
        bands = analysis(volume)
        errors[name] = {
            "bands_difference_to_ptwt": float((as_bands(name, bands) - reference).abs().max()),
            "reconstruction_error": float((synthesis(bands).reshape(volume.shape) - volume).abs().max()),
        }
    seconds = {name: {"analysis": [], "synthesis": []} for name in names}
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            analysis, synthesis = transforms[name]
            started = time.perf_counter()
            bands = analysis(volume)
            between = time.perf_counter()
            synthesis(bands)
            seconds[name]["synthesis"].append(time.perf_counter() - between)
            seconds[name]["analysis"].append(between - started)
            del bands
    return {name: {**errors[name], **summarise(seconds[name], seconds["voxdiff"])} for name in names}


def summarise(seconds: dict[str, list[float]], ours: dict[str, list[float]]) -> dict:
    total = [first + second for first, second in zip(seconds["analysis"], seconds["synthesis"], strict=True)]
    our_total = [first + second for first, second in zip(ours["analysis"], ours["synthesis"], strict=True)]
    parts = {"analysis": seconds["analysis"], "synthesis": seconds["synthesis"], "both": total}
    return {
        "ms": {
            name: {"min": round(1e3 * min(values), 2), "median": round(1e3 * statistics.median(values), 2)}
            for name, values in parts.items()
        },
        "voxdiff_over_this": round(statistics.median(a / b for a, b in zip(our_total, total, strict=True)), 3),
    }


def memory_in_own_process(name: str, size: int, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", str(size), "--threads", str(args.threads)]
    command += ["--official", str(args.official)] if args.official else []
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@torch.no_grad()
def memory_growth(name: str, size: int, official: Path | None) -> float:
    analysis, synthesis = make_transform(name, official)
    synthesis(analysis(torch.randn(1, 1, 32, 32, 32)))
    volume = torch.randn(1, 1, size, size, size)
    with PeakMemory() as peak:
        synthesis(analysis(volume))
    return peak.growth_mb


def row(size: int, name: str, measured: dict[str, dict]) -> list[str]:
    value = measured[name]
    times = value["ms"]["both"]
    ratio = f"{value['voxdiff_over_this']:.2f}"
    return [f"{size}³", name, f"{times['min']:.1f}", f"{times['median']:.1f}", ratio, f"{value['peak_growth_mb']:.0f}"]


def loses(other: dict, measured: dict[str, dict]) -> bool:
    """Whether another implementation is faster or smaller than ours."""
    ours = measured["voxdiff"]
    return other is not ours and (other["voxdiff_over_this"] >= 1 or other["peak_growth_mb"] <= ours["peak_growth_mb"])


if __name__ == "__main__":
    main()
