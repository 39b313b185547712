"""Time, memory and equality of slab decoding beside the whole decode, and what it plans for 512³ on a GPU.

    python benchmarks/bench_slab_decoding.py [--sizes 64 128] [--factors 8 4] [--width 24] [--rounds 1]

A decode is ``AutoencoderPatchVolume.decode`` as a user calls it: the look-up in the codebook of 8192 entries comes
first, which the memory model does not count. The autoencoder has the published layout at a reduced width (``--width
48`` is the published one; heads and groups as published), random weights, fp32, one volume without gradients. Every
decode runs in a process of its own after a small one, once for the time (CPU seconds are compared, since others may use
the machine) and once for the memory: the growth of the process's peak resident size over what it held before, with an
allocator that gives freed blocks of 1 MiB and more back at once; ``default_allocator_growth_mb`` is the growth in the
timed process, where glibc keeps them. The budgets are fractions of what the whole decode was measured to take, or the
smallest one that can be kept; ``unlimited`` lets the planner store every map. The error is the largest absolute
difference to the whole decode. The seam ratio is 1 where borders are like other places: the mean error in the rows
beside the last pass's slab borders over that in the same rows without slabs (``unlimited``), divided by the same for
all other rows. The plans are predictions for the published width. Writes NAME.json below --out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import RESULTS, PeakMemory, environment, markdown_table, write_result

from voxdiff import AutoencoderPatchVolume
from voxdiff.models.axis_order import to_network
from voxdiff.models.slab_decoding import SlabDecoder

WIDTHS = {8: (1, 2, 4, 4), 4: (1, 2, 2)}
FRACTIONS = (0.5, 0.25, 0.125)
UNLIMITED_GB = 1000.0


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.measure is not None:
        print(json.dumps(measure(args)))
        return
    started = environment()
    results, rows = {}, []
    for factor in args.factors:
        for size in args.sizes:
            measured = compare(factor, size, args)
            results[f"{factor}x {size}"] = measured
            rows += [row(factor, size, name, values, measured["whole"]) for name, values in measured.items()]
    header = ["decode", "CPU s", "x whole", "peak growth MB", "predicted MB", "x work", "max error", "seam ratio"]
    print(markdown_table(header, rows))
    plans = published_plans()
    print(json.dumps(plans, indent=2))
    protocol = {"dtype": "float32", "width": args.width, "published_width": 48, "rounds": args.rounds, "seed": 0}
    protocol |= {"threads": args.threads, "call": "AutoencoderPatchVolume.decode"}
    result = {"what": "slab decoding", "protocol": protocol, "results": results, "published_plans": plans}
    result |= {"environment": started, "load_average_at_end": environment()["load_average"]}
    print(write_result(args.name, result, args.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 4], choices=list(WIDTHS))
    parser.add_argument("--width", type=int, default=24, help="width of the finest level, a multiple of 24")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="slab_decoding", help="name of the file written")
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_autoencoder(factor: int, width: int, device: str = "cpu") -> AutoencoderPatchVolume:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoencoderPatchVolume(block_out_channels=tuple(width * multiple for multiple in WIDTHS[factor])).eval()


def compare(factor: int, size: int, args: argparse.Namespace) -> dict[str, dict]:
    """The whole decode and slab decoding at several budgets, each in processes of its own, in turns."""
    vae = make_autoencoder(factor, args.width, "meta")
    shape = (1, 8, *[size // factor] * 3)
    minimum = SlabDecoder(vae.decoder, UNLIMITED_GB).plan(shape, torch.float32).minimum_bytes / 2**30
    with tempfile.TemporaryDirectory() as folder:
        whole = in_own_process(factor, size, 0.0, f"{folder}/whole.pt", args)
        unlimited = in_own_process(factor, size, UNLIMITED_GB, f"{folder}/unlimited.pt", args)
        measured = {"whole": whole, "unlimited": unlimited | differences(folder, "unlimited", unlimited["rows"])}
        for fraction in FRACTIONS:
            budget = max(fraction * whole["peak_growth_mb"] / 2**10, minimum)
            slabs = in_own_process(factor, size, budget, f"{folder}/slabs.pt", args)
            name = f"{fraction:g} of whole"
            measured[name] = (
                {"budget_mb": round(budget * 2**10, 1)} | slabs | differences(folder, "slabs", slabs["rows"])
            )
    return measured


def in_own_process(factor: int, size: int, budget: float, output: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--factors", str(factor), "--sizes", str(size), "--width", str(args.width)]
    command += ["--threads", str(args.threads), "--measure", str(budget), "--output", output]

    def run(**environment: str) -> dict:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment)
        return json.loads(done.stdout.splitlines()[-1])

    frugal = run(MALLOC_MMAP_THRESHOLD_=str(2**20))
    timed = [run() for _ in range(args.rounds)]
    return {
        **frugal,
        **{clock: min(run[clock] for run in timed) for clock in ("cpu_seconds", "seconds")},
        "default_allocator_growth_mb": max(run["peak_growth_mb"] for run in timed),
    }


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    """Decode once within ``--measure`` GiB, or whole if that is 0."""
    factor, size = args.factors[0], args.sizes[0]
    vae = make_autoencoder(factor, args.width)
    latents = torch.randn(1, 8, *[size // factor] * 3, generator=torch.Generator().manual_seed(1))
    if args.measure:
        vae.enable_slab_decoding(max_memory_gb=args.measure)
    vae.decode(latents[..., :2, :2, :2])
    started, cpu_started = time.perf_counter(), time.process_time()
    with PeakMemory() as peak:
        volume = vae.decode(latents).sample
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    torch.save(to_network(volume, vae.config["axis_order"]), args.output)  # slabs lie along the network's first axis
    result = {"cpu_seconds": round(cpu_seconds, 2), "seconds": round(seconds, 2), "peak_growth_mb": peak.growth_mb}
    if args.measure:
        plan = SlabDecoder(vae.decoder, args.measure).plan(tuple(latents.shape), latents.dtype)
        result["predicted_mb"] = round(plan.peak_bytes / 2**20, 1)
        result["work_over_whole"] = round(plan.multiply_adds / plan.whole_multiply_adds, 3)
        result["rows"] = plan.passes[-1].rows
    return result


def differences(folder: str, name: str, rows: int) -> dict:
    whole, unlimited, slabs = (torch.load(f"{folder}/{name}.pt") for name in ("whole", "unlimited", name))
    result = {"max_error": float((slabs - whole).abs().max()), "output_max": float(whole.abs().max())}
    border = torch.zeros(whole.shape[2], dtype=torch.bool)
    border[rows - 1 : -1 : rows] = border[rows::rows] = True
    if border.any() and rows > 2:
        by_row, without_slabs = ((volume - whole).abs().mean(dim=(0, 1, 3, 4)) for volume in (slabs, unlimited))
        at_borders, elsewhere = (by_row[place].mean() / without_slabs[place].mean() for place in (border, ~border))
        result["seam_ratio"] = round(float(at_borders / elsewhere), 3)
    return result


def published_plans() -> dict[str, dict]:
    """What the memory model says of 512³ at the published width in 16 bits (bf16 and fp16 alike)."""
    plans = {}
    for factor in WIDTHS:
        decoder = make_autoencoder(factor, 48, "meta").decoder
        for budget in (8, 16, 24, 80):
            plan = SlabDecoder(decoder, budget).plan((1, 8, *[512 // factor] * 3), torch.bfloat16)
            plans[f"{factor}x 512, {budget} GiB, 16 bit"] = {
                "predicted_gib": round(plan.peak_bytes / 2**30, 2),
                "smallest_budget_gib": round(plan.minimum_bytes / 2**30, 2),
                "tflop": round(2e-12 * plan.multiply_adds),
                "work_over_whole": round(plan.multiply_adds / plan.whole_multiply_adds, 2),
            }
    return plans


def row(factor: int, size: int, name: str, values: dict, whole: dict) -> list[str]:
    return [
        f"{factor}x {size}³ {name}",
        f"{values['cpu_seconds']:.1f}",
        f"{values['cpu_seconds'] / whole['cpu_seconds']:.2f}",
        f"{values['peak_growth_mb']:.0f}",
        f"{values['predicted_mb']:.0f}" if "predicted_mb" in values else "",
        f"{values['work_over_whole']:.2f}" if "work_over_whole" in values else "",
        f"{values['max_error']:.1e}" if "max_error" in values else "",
        f"{values['seam_ratio']:.2f}" if "seam_ratio" in values else "",
    ]


if __name__ == "__main__":
    main()
