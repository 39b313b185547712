"""Our wavelet U-Net, training step and sampler beside the official WDM code: same weights, threads, inputs and run.

    python benchmarks/bench_wdm.py --official CHECKOUT_OF_WDM_3D [--large] [--model cwdm]
    python benchmarks/bench_wdm.py --device cuda [--official CHECKOUT_OF_WDM_3D]

The published configuration (58 M parameters, 131 GFLOP a forward at 64³; cWDM 82 M) is built by the official code with
random weights, its zero-initialised layers filled, and turned into ours by `voxdiff.hub.convert_state_dict`; the largest
difference of the outputs is reported. Without --official ours is timed alone. The variants take turns round by round,
so that a busy machine slows all of them; the ratio is the median over rounds of official / variant, in wall seconds and,
on a CPU, in processor seconds, which others' work disturbs less.

forward    one network call, batch 1, no gradients
training   forward, mean squared error in wavelet space, backward, AdamW, on one volume; the transforms included
sampling   the official 1000-step ancestral sampler against our pipeline with 50-step DPM-Solver++: seconds a step
           (network, clip in image space, scheduler) times steps

On CUDA the grids are 128³ and 256³ (six levels, as published) and the variants float32, bfloat16, bfloat16 in
channels_last_3d, and that compiled; peak memory is the growth of torch.cuda.max_memory_allocated over one call, the
weights come on top.
Writes NAME.json below --out. The official repository is imported, never copied; it needs PyWavelets.
"""

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from record import RESULTS, environment, markdown_table, write_result
from torch.utils.flop_counter import FlopCounterMode

from voxdiff import VolumeProcessor, WaveletDiffusionPipeline, WaveletUNet3DModel, convert_state_dict
from voxdiff.schedulers import make_scheduler
from voxdiff.wavelets import WaveletTransform

WIDTHS = {64: (1, 2, 2, 4, 4), 128: (1, 2, 2, 4, 4), 256: (1, 2, 2, 4, 4, 4)}
TRANSFORM = WaveletTransform()
OFFICIAL = "official float32"
STEPS_TIMED = 3  # of our sampler, in one call of the pipeline
Call = Callable[[], object]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    started = environment(args.device)
    results = {}
    for size in args.sizes:
        for part in args.parts:
            measured = PARTS[part](size, args)
            results.setdefault(str(size), {})[part] = measured
            print(report(part, size, measured), flush=True)
    protocol = {
        "model": args.model,
        "device": args.device,
        "threads": args.threads,
        "rounds": args.rounds,
        "batch": 1,
        "seed": 0,
        "order": "variants in turn, the first rotates",
        "official": str(args.official) if args.official else None,
    }
    result = {"what": "wavelet diffusion beside the official code", "protocol": protocol, "results": results}
    result |= {"environment": started, "load_average_at_end": environment()["load_average"]}
    print(write_result(args.name, result, args.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="checkout of the official repository (wdm-3d or cwdm)")
    parser.add_argument("--model", default="wdm", choices=["wdm", "cwdm"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="grids; default 64 on a CPU, 128 and 256 on CUDA")
    parser.add_argument("--large", action="store_true", help="on a CPU also 128³")
    parser.add_argument("--parts", nargs="+", default=["forward", "training", "sampling"], choices=list(PARTS))
    parser.add_argument("--rounds", type=int, help="default 3 on a CPU, 10 on CUDA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help="name of the file written; default bench_wdm, with model and device if others")
    args = parser.parse_args()
    on_cuda = args.device.startswith("cuda")
    args.sizes = args.sizes or ([128, 256] if on_cuda else [64, 128] if args.large else [64])
    args.rounds = args.rounds or (10 if on_cuda else 3)
    if any(size not in WIDTHS for size in args.sizes):
        parser.error(f"--sizes takes {', '.join(map(str, WIDTHS))}")
    if args.model == "cwdm":
        args.parts = [part for part in args.parts if part == "forward"]
    suffix = "".join(f"_{name}" for name in (args.model, args.device) if name not in ("wdm", "cpu"))
    args.name = args.name or f"bench_wdm{suffix}".replace(":", "-")
    return args


def build_networks(size: int, args: argparse.Namespace) -> tuple[WaveletUNet3DModel, torch.nn.Module | None]:
    """Ours and the official network (None without a checkout), with the same weights."""
    torch.manual_seed(0)
    if args.official is None:
        widths = tuple(64 * factor for factor in WIDTHS[size])
        concat = {"in_channels": 32, "skip_mode": "concat"} if args.model == "cwdm" else {}
        ours = WaveletUNet3DModel(block_out_channels=widths, **concat)
        fill_zeros(ours)
        return ours.to(args.device), None
    official = official_network(size, args)
    fill_zeros(official)
    ours = convert_state_dict(args.model, official.state_dict())
    official.to(torch.device(args.device))  # the official `to` returns nothing
    return ours.to(args.device), official


def official_network(size: int, args: argparse.Namespace) -> torch.nn.Module:
    sys.path.insert(0, str(args.official))
    # Imported by the official modules, but called neither by the network nor by a sampling step.
    for name in ("torchvision", "torchvision.utils", "guided_diffusion.train_util"):
        sys.modules.setdefault(name, MagicMock())
    from guided_diffusion.script_util import create_model

    return create_model(
        size,
        64,
        2,
        channel_mult=WIDTHS[size],
        attention_resolutions="",
        dims=3,
        in_channels=32 if args.model == "cwdm" else 8,
        out_channels=8,
        bottleneck_attention=False,
        resample_2d=False,
        additive_skips=args.model == "wdm",
    )


def fill_zeros(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def bench_forward(size: int, args: argparse.Namespace) -> dict[str, dict]:
    ours, official = build_networks(size, args)
    sample = torch.randn(1, ours.config.in_channels, *(size // 2,) * 3, device=args.device)
    timestep = torch.tensor([500], device=args.device)
    calls: dict[str, Call] = {}
    if official is not None:
        calls[OFFICIAL] = no_grad(lambda: official.eval()(sample, timestep))
    networks = make_variants(ours.eval(), args)
    for name, (network, dtype, memory_format) in networks.items():
        given = sample.to(dtype).contiguous(memory_format=memory_format)
        calls[name] = no_grad(lambda network=network, given=given: network(given, timestep, return_dict=False)[0])
    reference = calls[OFFICIAL if official is not None else "voxdiff float32"]().float()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(sample, timestep)
    differences = {}
    for name, call in calls.items():  # also the first call, which compiles
        differences[name] = float((call().float() - reference).abs().max())
    measured = take_turns(calls, args)
    for name, value in measured.items():
        value["largest_difference"] = differences[name]
        value["tflops"] = round(counter.get_total_flops() / value["median_s"] / 1e12, 3)
    return {"gflop": round(counter.get_total_flops() / 1e9, 1), "scale": float(reference.std()), "variants": measured}


def make_variants(ours: WaveletUNet3DModel, args: argparse.Namespace) -> dict[str, tuple]:
    """Name → network, dtype and memory format of its input."""
    plain, last = torch.contiguous_format, torch.channels_last_3d
    half_last = copy_of(ours, torch.bfloat16, last)
    variants = {"voxdiff float32": (ours, torch.float32, plain)}
    if not args.device.startswith("cuda"):
        variants["voxdiff float32 channels_last_3d"] = (copy_of(ours, torch.float32, last), torch.float32, last)
    variants["voxdiff bfloat16"] = (copy_of(ours, torch.bfloat16, plain), torch.bfloat16, plain)
    variants["voxdiff bfloat16 channels_last_3d"] = (half_last, torch.bfloat16, last)
    if args.device.startswith("cuda") and not args.no_compile:
        compiled = torch.compile(copy_of(half_last, torch.bfloat16, last), fullgraph=True)
        variants["voxdiff bfloat16 channels_last_3d compiled"] = (compiled, torch.bfloat16, last)
    return variants


def copy_of(network: WaveletUNet3DModel, dtype: torch.dtype, memory_format: torch.memory_format) -> WaveletUNet3DModel:
    twin = torch.nn.Module.to(copy.deepcopy(network), dtype)  # diffusers' own `to` warns of a list that is empty
    return twin.to(memory_format=memory_format)


def bench_training(size: int, args: argparse.Namespace) -> dict[str, dict]:
    ours, official = build_networks(size, args)
    volume = torch.rand(1, 1, size, size, size, device=args.device) * 2 - 1
    calls: dict[str, Call] = {}
    if official is not None:
        calls[OFFICIAL] = official_training_step(official.train(), volume)
    calls["voxdiff float32"] = training_step(ours.train(), volume, None)
    last = copy_of(ours, torch.float32, torch.channels_last_3d)
    calls["voxdiff bfloat16 autocast channels_last_3d"] = training_step(last.train(), volume, torch.bfloat16)
    losses = {name: float(call()) for name, call in calls.items()}
    measured = take_turns(calls, args)
    for name, value in measured.items():
        value["first_loss"] = losses[name]
    return {"variants": measured}


def training_step(network: WaveletUNet3DModel, volume: torch.Tensor, autocast: torch.dtype | None) -> Call:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0)
    noised, clean, timestep = noise_volume(volume)

    def step() -> torch.Tensor:
        TRANSFORM.analysis(volume)  # the data's transform is part of a step
        with torch.autocast(volume.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            prediction = network(noised, timestep, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), clean)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def official_training_step(network: torch.nn.Module, volume: torch.Tensor) -> Call:
    from DWT_IDWT.DWT_IDWT_layer import DWT_3D, IDWT_3D

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0)
    noised, clean, timestep = noise_volume(volume)
    analysis, synthesis = DWT_3D("haar"), IDWT_3D("haar")

    def step() -> torch.Tensor:
        analysis(volume)
        analysis(torch.randn_like(volume))  # its noise is drawn in image space
        prediction = network(noised, timestep)
        loss = F.mse_loss(prediction, clean)
        low, *details = prediction.detach().split(1, dim=1)
        synthesis(low * 3, *details)  # every step makes the image, for its log
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def noise_volume(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    clean = TRANSFORM.analysis(volume)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(clean)
    return 0.7 * clean + 0.7 * noise, clean, torch.tensor([500], device=volume.device)


def bench_sampling(size: int, args: argparse.Namespace) -> dict[str, dict]:
    ours, official = build_networks(size, args)
    calls: dict[str, Call] = {}
    steps = {}
    if official is not None:
        calls[OFFICIAL] = official_sampling_step(official.eval(), size, args)
        steps[OFFICIAL] = 1000
    networks = make_variants(ours.eval(), args)
    for name, (network, _, _) in networks.items():
        if "channels_last" in name or name == "voxdiff float32":
            calls[name] = our_sampling_steps(network, size)
            steps[name] = 50
    for call in calls.values():
        call()
    measured = take_turns(calls, args)
    for name, value in measured.items():
        taken = 1 if name == OFFICIAL else STEPS_TIMED
        value["seconds_per_step"] = round(value["median_s"] / taken, 4)
        value["steps"] = steps[name]
        value["seconds_per_volume"] = round(value["seconds_per_step"] * steps[name], 2)
        for ratio in ("ratio", "ratio_cpu"):  # of whole volumes
            value[ratio] = round(value[ratio] * taken * 1000 / steps[name], 2) if value[ratio] else None
    return {
        "variants": measured,
        "note": f"ours: {STEPS_TIMED} steps a call, decoding included; ratio: volume by volume",
    }


def our_sampling_steps(network: WaveletUNet3DModel, size: int) -> Call:
    """A pipeline call with few steps; the compiled network has the attributes of the one it wraps."""
    processor = VolumeProcessor(size=(size,) * 3, spacing=(1.0,) * 3, intensity="minmax").to_dict()
    unet = getattr(network, "_orig_mod", network)
    pipe = WaveletDiffusionPipeline(unet, make_scheduler("wdm-dpm++"), processor=processor)
    pipe.unet = network
    pipe.set_progress_bar_config(disable=True)

    def call() -> object:
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=STEPS_TIMED, generator=generator, output_type="pt").volumes

    return call


def official_sampling_step(network: torch.nn.Module, size: int, args: argparse.Namespace) -> Call:
    from guided_diffusion.script_util import create_gaussian_diffusion

    diffusion = create_gaussian_diffusion(
        steps=1000, noise_schedule="linear", predict_xstart=True, timestep_respacing="", mode="default"
    )
    sample = torch.randn(1, 8, *(size // 2,) * 3, device=args.device)
    timestep = torch.tensor([500], device=args.device)
    return no_grad(lambda: diffusion.p_sample(network, sample, timestep, clip_denoised=True, model_kwargs={})["sample"])


def no_grad(call: Call) -> Call:
    def wrapped() -> object:
        with torch.no_grad():
            return call()

    return wrapped


def take_turns(calls: dict[str, Call], args: argparse.Namespace) -> dict[str, dict]:
    """Seconds of each call, the calls in turn, after one call each that was made before."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            used = time.process_time()
            seconds[name].append(time_call(calls[name], args.device, memory, name))
            processor[name].append(time.process_time() - used)
    measured = {
        name: {
            "min_s": round(min(values), 4),
            "median_s": round(statistics.median(values), 4),
            "cpu_s": round(statistics.median(processor[name]), 4),
            "ratio": ratio_to_official(seconds, name),
            "ratio_cpu": ratio_to_official(processor, name),
            **({"peak_memory_mb": memory[name]} if name in memory else {}),
        }
        for name, values in seconds.items()
    }
    gc.collect()
    return measured


def ratio_to_official(seconds: dict[str, list[float]], name: str) -> float | None:
    if OFFICIAL not in seconds:
        return None
    pairs = zip(seconds[OFFICIAL], seconds[name], strict=True)
    return round(statistics.median(theirs / this for theirs, this in pairs), 3)


def time_call(call: Call, device: str, memory: dict[str, float], name: str) -> float:
    if not device.startswith("cuda"):
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    # The other variants hold their weights too: this is the growth over what lay there before the call.
    memory[name] = round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    return elapsed


def report(part: str, size: int, measured: dict) -> str:
    rows = []
    for name, value in measured["variants"].items():
        cells = [f"{value[key]:.3f}" for key in ("min_s", "median_s", "cpu_s")]
        cells += [f"{value[key]:.2f}" if value[key] else "-" for key in ("ratio", "ratio_cpu")]
        difference = value.get("largest_difference")
        cells.append("-" if difference is None else f"{difference:.1e}")
        volume, memory = value.get("seconds_per_volume"), value.get("peak_memory_mb")
        cells += [f"{volume:.0f}" if volume else "-", f"{memory:.0f}" if memory else "-"]
        rows.append([name, *cells])
    header = [
        f"{part}, {size}³",
        "min s",
        "median s",
        "CPU s",
        "official / this",
        "in CPU s",
        "difference",
        "s a volume",
        "peak growth MB",
    ]
    return markdown_table(header, rows)


PARTS = {"forward": bench_forward, "training": bench_training, "sampling": bench_sampling}


if __name__ == "__main__":
    main()
