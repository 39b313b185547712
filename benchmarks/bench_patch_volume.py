"""Our Patch-Volume autoencoder, BiFlowNet and sampler beside the official 3D MedDiffusion: same weights, inputs, run.

    PYTHONPATH=DIR_WITH_TIMM python benchmarks/bench_patch_volume.py --official CHECKOUT [--sizes 64 128] [--factors 8 4]
    PYTHONPATH=DIR_WITH_TIMM python benchmarks/bench_patch_volume.py --device cuda [--official CHECKOUT] [--sizes 256 512]

The published 8x and 4x networks are built by the official code with random weights and turned into ours by
`voxdiff.hub.convert_state_dict`; in float32 the outputs must agree, or the benchmark stops. Without --official ours is
timed alone. The variants take turns round by round; the ratio is the median over rounds of official / variant, in wall
seconds and, on a CPU, in processor seconds, which others' work disturbs less. A size is that of the volume.

encode     a volume to latents: the official code gives all patches of 64³ to the encoder at once, ours a few
decode     quantise and decode latents that lie near codebook entries. As in its sampling scripts, the official code cuts
           latents of more than 32³ (8x) or 64³ (4x) voxels into tiles of 32³, ours decodes the volume whole or, above
           96³ voxels, also by slabs within the budgets of --slab-gb: in float32, and on CUDA in bfloat16 as well, with
           TF32 off in float32 and twice the budgets, so that what is computed twice is the same in both precisions
denoise    one call of BiFlowNet on the latent of such a volume
sample     a volume: the official 1000 ancestral steps against 50 steps of DPM-Solver++; seconds of a step (network and
           scheduler) times steps, plus the seconds of decode. Steps are timed, whole chains are not

The error is the root mean square of the difference to another output over that of the other, with random weights: an
image's error may be another. The other, named beside it, is the official float32 one; ours where that is tiled or missing;
and of a slab decode the whole decode in the same precision or, where that runs out of memory (float32 at 512³), the slab
decode with the next larger budget. Elsewhere TF32 is as PyTorch has it: on in convolutions. Peak memory is the growth over
one call, of the resident size on a CPU and of torch.cuda.max_memory_allocated on CUDA; the weights come on top. The
tables of a CPU show processor seconds, NAME.json has both clocks. Writes NAME.json and NAME.md below --out.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from official_med import official_autoencoder, official_biflownet, official_diffusion
from patch_volume_tables import OFFICIAL, STEPS_TIMED, add_errors, add_volumes, document, part_table
from record import RESULTS, environment, write_result
from torch import nn
from turns import Call, Measured, take_turns

from voxdiff import (
    AutoencoderPatchVolume,
    BiFlowNet3DModel,
    PatchVolumeLDMPipeline,
    VolumeProcessor,
    convert_state_dict,
)
from voxdiff.models.axis_order import from_network, to_network
from voxdiff.schedulers import make_scheduler

OURS = "voxdiff float32"
EXACT = "voxdiff float32 without TF32"
HALF = "voxdiff bfloat16"
WIDTHS = {8: (48, 96, 192, 192), 4: (48, 96, 96)}
WHOLE_UP_TO = {8: 32**3, 4: 64**3}  # latent voxels that the official scripts decode at once
SLABS_ABOVE = 96
TOLERANCE = 1e-4
LABEL = 1


@dataclass
class Networks:
    """The networks of one compression factor; the official ones are None without a checkout."""

    factor: int
    vae: AutoencoderPatchVolume
    unet: BiFlowNet3DModel
    official_vae: Any
    official_unet: Any


@dataclass
class Variant:
    """Our networks in one precision and memory format."""

    vae: AutoencoderPatchVolume
    unet: BiFlowNet3DModel
    dtype: torch.dtype
    memory_format: torch.memory_format

    def prepare(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as these networks take it."""
        return tensor.to(self.dtype).contiguous(memory_format=self.memory_format)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    run = {
        "environment": environment(args.device),
        "device": args.device,
        "threads": args.threads,
        "rounds": args.rounds,
        "order": "variants in turn, the first rotates; no warm-up",
        "batch": 1,
        "seed": 0,
    }
    path = args.out / f"{args.name}.json"
    result: dict[str, Any] = {"what": "Patch-Volume diffusion beside the official code", "runs": [], "results": {}}
    if args.add and path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    for factor in args.factors:
        networks = build_networks(factor, args)
        variants = make_variants(networks, args)
        for size in args.sizes:
            measured = result["results"].setdefault(f"{factor}x {size}", {})
            for part in args.parts:
                measured[part] = PARTS[part](size, networks, variants, args)
                print(part_table(part, factor, size, measured[part], args.device), flush=True)
            add_volumes(measured)
    result["runs"].append(run | {"load_average_at_end": environment()["load_average"]})
    write_result(args.name, result, args.out)
    path.with_suffix(".md").write_text(document(result), encoding="utf-8")
    print(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="checkout of ShanghaiTech-IMPACT/3D-MedDiffusion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the volume; default 64 on a CPU, 256 on CUDA")
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 4], choices=list(WIDTHS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    budgets = f"budgets, of bfloat16 on CUDA; default above {SLABS_ABOVE}³: 1 on a CPU, 8 and 16 on CUDA"
    parser.add_argument("--slab-gb", type=float, nargs="*", help=budgets)
    parser.add_argument("--rounds", type=int, help="default 3 on a CPU, 5 on CUDA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="to an earlier result of that name, instead of replacing it")
    parser.add_argument("--name", help="of the files written; default patch_volume, with the device if not a CPU")
    args = parser.parse_args()
    on_cuda = args.device.startswith("cuda")
    args.sizes = args.sizes or ([256] if on_cuda else [64])
    args.rounds = args.rounds or (5 if on_cuda else 3)
    if any(size % 64 for size in args.sizes):
        parser.error("--sizes takes multiples of 64, the patch of the published autoencoders")
    args.name = args.name or ("patch_volume_cuda" if on_cuda else "patch_volume")
    return args


def build_networks(factor: int, args: argparse.Namespace) -> Networks:
    torch.manual_seed(0)
    if args.official is None:
        vae = AutoencoderPatchVolume(block_out_channels=WIDTHS[factor]).eval()
        vae.update_latent_range()
        unet = BiFlowNet3DModel(token_size={8: 1, 4: 2}[factor]).eval()
        return Networks(factor, vae.to(args.device), unet.to(args.device), None, None)
    official_vae, official_unet = official_autoencoder(args.official, factor), official_biflownet(args.official, factor)
    vae = convert_state_dict("med-autoencoder", official_vae.state_dict())
    unet = convert_state_dict("med-biflownet", official_unet.state_dict())
    return Networks(factor, *(network.to(args.device) for network in (vae, unet, official_vae, official_unet)))


def make_variants(networks: Networks, args: argparse.Namespace) -> dict[str, Variant]:
    plain, last = torch.contiguous_format, torch.channels_last_3d
    formats = [("voxdiff float32 channels_last_3d", torch.float32, last)] if not args.device.startswith("cuda") else []
    formats += [
        (HALF, torch.bfloat16, plain),
        (f"{HALF} channels_last_3d", torch.bfloat16, last),
    ]
    variants = {OURS: Variant(networks.vae, networks.unet, torch.float32, plain)}
    for name, dtype, memory_format in formats:
        twins = [copy_of(network, dtype, memory_format) for network in (networks.vae, networks.unet)]
        variants[name] = Variant(*twins, dtype, memory_format)
    return variants


def copy_of(network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> nn.Module:
    return nn.Module.to(copy.deepcopy(network), dtype).to(memory_format=memory_format)


def encode(vae: AutoencoderPatchVolume, volume: torch.Tensor) -> torch.Tensor:
    return vae.encode(volume).latents


def decode(vae: AutoencoderPatchVolume, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents).sample


def denoise(unet: BiFlowNet3DModel, latents: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return unet(latents, timestep, class_labels=label).sample


def bench_encode(size: int, networks: Networks, variants: dict[str, Variant], args: argparse.Namespace) -> dict:
    volume = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(1)).to(args.device) * 2 - 1
    calls = official_calls(lambda: networks.official_vae.patch_encode(to_network(volume, "zxy")), networks, args)
    for name, variant in variants.items():
        calls[name] = partial(encode, variant.vae, variant.prepare(volume))
    return compare(calls, args)


def bench_decode(size: int, networks: Networks, variants: dict[str, Variant], args: argparse.Namespace) -> dict:
    latents = near_entries(networks.vae, size).to(args.device)
    whole = (size // networks.factor) ** 3 <= WHOLE_UP_TO[networks.factor]

    def official() -> torch.Tensor:
        official_decode = networks.official_vae.decode if whole else networks.official_vae.decode_sliding
        return official_decode(to_network(latents, "zxy"), quantize=True)

    calls = official_calls(official, networks, args)
    for name, variant in variants.items():
        calls[name] = partial(decode, variant.vae, variant.prepare(latents))
    slabs, references = slab_calls(size, latents, variants, args)
    return compare(calls | slabs, args, tiled=not whole, references=references)


def near_entries(vae: AutoencoderPatchVolume, size: int) -> torch.Tensor:
    """Latents whose nearest entry no rounding changes, so that the decoders are compared on the same codes."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, *(size // vae.compression,) * 3)
    codes = torch.randint(vae.config["num_embeddings"], shape, generator=generator)
    entries = vae.quantize.lookup(codes.to(vae.device)).cpu()
    return entries + 0.05 * torch.randn(entries.shape, generator=generator)


def slab_calls(
    size: int, latents: torch.Tensor, variants: dict[str, Variant], args: argparse.Namespace
) -> tuple[dict[str, Call], dict[str, list[str]]]:
    """Slab decodes and, on CUDA, the whole decode without TF32; and what each slab decode is compared with if it ran."""
    on_cuda = args.device.startswith("cuda")
    budgets = args.slab_gb
    if budgets is None:
        budgets = ([8, 16] if on_cuda else [1]) if size > SLABS_ABOVE else []
    calls: dict[str, Call] = {}
    references: dict[str, list[str]] = {}
    if budgets and on_cuda:
        calls[EXACT] = partial(without_tf32, partial(decode, variants[OURS].vae, latents))
    for base, times in ({EXACT: 2, HALF: 1} if on_cuda else {OURS: 1}).items():
        variant, larger = variants[OURS if base == EXACT else base], []
        for budget in sorted(budgets, reverse=True):
            vae = copy.deepcopy(variant.vae)
            vae.enable_slab_decoding(max_memory_gb=times * budget)
            name = f"{base} slabs {times * budget:g} GiB"
            calls[name] = partial(without_tf32, partial(decode, vae, variant.prepare(latents)))
            references[name] = [base, *larger]
            larger = [name]
    return calls, references


def without_tf32(call: Call) -> torch.Tensor:
    """The call with true float32 in CUDA's convolutions, where PyTorch shortens it; matrix products are so anyway."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return call()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def bench_denoise(size: int, networks: Networks, variants: dict[str, Variant], args: argparse.Namespace) -> dict:
    latents, timestep, label = noise(networks, size).to(args.device), *conditions(args)
    turned = to_network(latents, "zxy")
    resolution = torch.tensor(turned.shape[2:], device=args.device) / 64
    calls = official_calls(lambda: networks.official_unet(turned, timestep, y=label, res=resolution), networks, args)
    for name, variant in variants.items():
        calls[name] = partial(denoise, variant.unet, variant.prepare(latents), timestep, label)
    return compare(calls, args)


def bench_sample(size: int, networks: Networks, variants: dict[str, Variant], args: argparse.Namespace) -> dict:
    """Seconds of a step of the sampler, of which :func:`add_volumes` makes seconds of a volume."""
    calls: dict[str, Call] = {}
    if networks.official_unet is not None:
        diffusion = official_diffusion(args.official).to(args.device)
        latents, timestep, label = to_network(noise(networks, size).to(args.device), "zxy"), *conditions(args)
        resolution = torch.tensor(latents.shape[2:], device=args.device) / 64
        calls[OFFICIAL] = lambda: diffusion.p_sample(
            networks.official_unet, latents, timestep, y=label, res=resolution
        ).clone()
    for name, variant in variants.items():
        calls[name] = sampling_steps(variant, size)
    measured, _ = take_turns(calls, rounds=args.rounds, device=args.device, reference=OFFICIAL)
    for name, value in measured.items():
        taken = 1 if name == OFFICIAL else STEPS_TIMED
        for clock in ("median_s", "cpu_s"):
            if clock in value:
                value[f"{clock}_per_step"] = round(value[clock] / taken, 4)
        for ratio in ("ratio", "ratio_cpu"):
            value[ratio] = round(value[ratio] * taken, 3) if value.get(ratio) else None
    return measured


def sampling_steps(variant: Variant, size: int) -> Call:
    processor = VolumeProcessor(size=(size,) * 3, spacing=(1.0,) * 3, intensity="minmax").to_dict()
    pipe = PatchVolumeLDMPipeline(variant.vae, variant.unet, make_scheduler("med-dpm++"), processor=processor)
    pipe.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(LABEL, num_inference_steps=STEPS_TIMED, generator=generator, output_type="latent").volumes

    return call


def noise(networks: Networks, size: int) -> torch.Tensor:
    shape = (1, 8, *(size // networks.factor,) * 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def conditions(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([500], device=args.device), torch.tensor([LABEL], device=args.device)


def official_calls(call: Callable[[], torch.Tensor], networks: Networks, args: argparse.Namespace) -> dict[str, Call]:
    """The official call in float32 and under autocast, its output turned to x, y, z; nothing without a checkout."""
    if networks.official_vae is None:
        return {}

    def autocast() -> torch.Tensor:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            return from_network(call(), "zxy")

    return {OFFICIAL: lambda: from_network(call(), "zxy"), "official bfloat16 autocast": autocast}


def compare(
    calls: dict[str, Call],
    args: argparse.Namespace,
    *,
    tiled: bool = False,
    references: dict[str, list[str]] | None = None,
) -> dict[str, Measured]:
    """Measure the calls and their differences; ``tiled``: the official output has seams, so ours is the reference.

    ``references`` are those of slab decodes, in the order of preference. In float32 they stand in for the whole decode as
    the reference of all others where that ran out of memory.
    """
    references = references or {}
    measured, outputs = take_turns(calls, rounds=args.rounds, device=args.device, reference=OFFICIAL)
    usual = [*([] if tiled else [OFFICIAL]), OURS, *(name for name in references if not name.startswith(HALF))]
    add_errors(measured, outputs, {name: references.get(name, usual) for name in outputs})
    if not measured[OURS].get("error", 0.0) < (TOLERANCE if args.device == "cpu" else 10 * TOLERANCE):
        raise RuntimeError(f"Ours differs from the official output by {measured[OURS]['error']:.1e} of its size.")
    return measured


PARTS = {"encode": bench_encode, "decode": bench_decode, "denoise": bench_denoise, "sample": bench_sample}


if __name__ == "__main__":
    main()
