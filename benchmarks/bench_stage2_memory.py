"""Memory of one training step of the joint decoder, the Patch-Volume way and the plain way (3D MedDiffusion, Table I).

    python benchmarks/bench_stage2_memory.py [--grids 64x64x64 64x64x128] [--factors 8 4]
    PYTHONPATH=DIR_WITH_TIMM python benchmarks/bench_stage2_memory.py --official CHECKOUT
    python benchmarks/bench_stage2_memory.py --device cuda --grids 64x64x64 128x128x128 192x192x192

The published widths, batch 1, random weights, a random volume. A step is the reconstruction, backward, Adam; then the
discriminator on the same volumes, backward, Adam: `AutoencoderObjective` with its L1, adversarial and feature matching
terms. LPIPS is left out on all sides, whose memory comes on top; the paper does not say what its figures include.

naive       the whole volume through encoder, codebook and decoder, gradients in all of them
efficient   stage 2: frozen encoder, its patches of 64³ a few at a time; only the decoder keeps activations
official    the official stage 2, all patches at once; its two optimisers take turns by batches, here one turn each

``checkpointing`` recomputes the decoder's blocks in the backward pass, ``bfloat16`` is autocast. Every step runs in a
process of its own, the optimisers' states made before. Held is the size of weights and states; growth is what a step
takes beside it at its peak, gradients included: of the resident size on a CPU, of torch.cuda.max_memory_allocated on
CUDA. On a CPU a step that wants more than --limit-gb is stopped and listed as such.
Writes NAME.json and NAME.md below --out.
"""

import argparse
import gc
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from official_med import official_autoencoder
from record import RESULTS, environment, markdown_table, write_result
from turns import measure_call

from voxdiff import AutoencoderPatchVolume
from voxdiff.models.discriminator_patch_3d import PatchDiscriminator3D
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_autoencoder import AutoencoderObjective
from voxdiff.training.random_crops import RandomCrops

WIDTHS = {8: (48, 96, 192, 192), 4: (48, 96, 96)}
VARIANTS = (
    "naive",
    "efficient",
    "efficient checkpointing",
    "efficient bfloat16",
    "efficient bfloat16 checkpointing",
)
OFFICIAL = "official"
PAPER_GB = {(64, 64, 64): (3.56, 2.88), (128, 128, 128): (24.10, 16.21)}  # naive, efficient; its text is about 4x
Step = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.measure is not None:
        print(json.dumps(measure(args)))
        return
    run = {
        "environment": environment(args.device),
        "device": args.device,
        "threads": args.threads,
        "limit_gb": None if args.device.startswith("cuda") else args.limit_gb,
        "batch": 1,
        "seed": 0,
    }
    path = args.out / f"{args.name}.json"
    result: dict[str, Any] = {"what": "Memory of a training step of stage 2", "runs": [], "results": {}}
    if args.add and path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    result["runs"].append(run)
    for factor in args.factors:
        for grid in args.grids:
            measured = result["results"].setdefault(f"{factor}x {'x'.join(map(str, grid))}", {})
            for name in args.variants:
                measured[name] = in_own_process(name, factor, grid, args)
                write_result(args.name, result, args.out)
            print(table(factor, grid, measured), flush=True)
    path.with_suffix(".md").write_text(document(result), encoding="utf-8")
    print(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="checkout of ShanghaiTech-IMPACT/3D-MedDiffusion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grids", type=grid_of, nargs="+", default=[(64, 64, 64), (64, 64, 128)])
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 4], choices=list(WIDTHS))
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, OFFICIAL], help="default all")
    parser.add_argument("--limit-gb", type=float, default=9.0, help="of memory that a step on a CPU may take")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="to an earlier result of that name, instead of replacing it")
    parser.add_argument("--name", help="of the files written; default stage2_memory, with the device if not a CPU")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if OFFICIAL in (args.variants or ()) and args.official is None:
        parser.error("the official step needs --official")
    args.variants = args.variants or [*VARIANTS, *([OFFICIAL] if args.official else [])]
    args.name = args.name or ("stage2_memory_cuda" if args.device.startswith("cuda") else "stage2_memory")
    return args


def grid_of(text: str) -> tuple[int, ...]:
    """``64x64x128`` as three sizes along x, y and z."""
    grid = tuple(int(size) for size in text.split("x"))
    if len(grid) != 3 or any(size <= 0 or size % 64 for size in grid):
        raise argparse.ArgumentTypeError(f"{text} is not three multiples of 64, such as 64x64x128")
    return grid


def in_own_process(name: str, factor: int, grid: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", name, "--factors", str(factor), "--device", args.device]
    command += ["--grids", "x".join(map(str, grid)), "--threads", str(args.threads), "--limit-gb", str(args.limit_gb)]
    if args.official:
        command += ["--official", str(args.official)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One step of the variant ``--measure`` on the first grid."""
    torch.manual_seed(0)
    factor, grid, name = args.factors[0], args.grids[0], args.measure
    step, holders = official_step(factor, args) if name == OFFICIAL else our_step(name, factor, args)
    held = sum(tensor.nbytes for holder in holders for tensor in tensors_of(holder)) / 2**20
    volume = random_volume(grid, args.device)
    gc.collect()
    if not args.device.startswith("cuda"):
        limit_memory(args.limit_gb - held / 2**10)
    try:
        run, loss = measure_call(lambda: step(volume), args.device)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return {"out_of_memory": True}
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return {"over_limit": True}
        raise
    return {
        "held_mb": round(held, 1),
        "growth_mb": run["peak_memory_mb"],
        "total_gb": round((held + run["peak_memory_mb"]) / 2**10, 3),
        "seconds": round(run["seconds"], 2),
        "cpu_seconds": round(run["cpu"], 2),
        "loss": round(float(loss), 5),
    }


def limit_memory(limit_gb: float) -> None:
    """Let this process allocate that much more, and fail beyond."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    allocated = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 2**10
    limit = allocated + int(limit_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def our_step(name: str, factor: int, args: argparse.Namespace) -> tuple[Step, list[Any]]:
    """The step, and what holds tensors between steps."""
    naive = name == "naive"
    vae = AutoencoderPatchVolume(block_out_channels=WIDTHS[factor], patch_size=None if naive else 64)
    vae = vae.to(args.device).train()
    if not naive:
        vae.freeze_encoder()
    if "checkpointing" in name:
        vae.enable_gradient_checkpointing()
    discriminator = PatchDiscriminator3D(axis_order="zxy").to(args.device).train()
    objective = AutoencoderObjective(vae, crops=RandomCrops(None, augment=False), adversary=discriminator)
    optimizers = [adam(network) for network in (vae, discriminator)]
    half = "bfloat16" in name

    def step(volume: torch.Tensor) -> torch.Tensor:
        batch = {"volume": volume, "step": [0], "place": [0]}
        losses = (lambda: objective(vae, batch, SampleNoise(0, batch)), lambda: objective.adversary_loss(discriminator))
        values = []
        for optimizer, make_loss in zip(optimizers, losses, strict=True):
            with torch.autocast(volume.device.type, torch.bfloat16, enabled=half):
                loss = make_loss()
            values.append(descend(loss, optimizer))
            del loss
        return values[0]

    return step, [vae, discriminator, *optimizers]


def official_step(factor: int, args: argparse.Namespace) -> tuple[Step, list[Any]]:
    """A turn of the official generator and one of its discriminator, without Lightning."""
    network = official_autoencoder(args.official, factor, stage=2).to(args.device).train()
    for part in (network.encoder, network.pre_vq_conv, network.codebook):
        part.requires_grad_(False).eval()
    optimizers = network.configure_optimizers()
    for optimizer in optimizers:
        make_states(optimizer)

    def step(volume: torch.Tensor) -> torch.Tensor:
        reconstruction, _, _, adversarial, perceptual, features = network(volume, 0)
        loss = reconstruction + adversarial + perceptual + features
        del reconstruction, adversarial, perceptual, features, _
        value = descend(loss, optimizers[0])
        network.zero_grad()
        descend(network(volume, 1), optimizers[1])
        return value

    return step, [network, *optimizers]


def adam(network: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-5, betas=(0.5, 0.9))
    make_states(optimizer)
    return optimizer


def make_states(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimiser allocate its moments, by a step with gradients of zero, which moves nothing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def random_volume(grid: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.rand(1, 1, *grid, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1


def tensors_of(holder: Any) -> list[torch.Tensor]:
    if isinstance(holder, torch.nn.Module):
        return [*holder.parameters(), *holder.buffers()]
    return [value for state in holder.state.values() for value in state.values() if torch.is_tensor(value)]


def table(factor: int, grid: tuple[int, ...], measured: dict[str, dict]) -> str:
    header = [f"{factor}x, {' x '.join(map(str, grid))}", "held MiB", "growth MiB", "total GiB", "of naive", "CPU s"]
    naive = measured.get("naive", {}).get("total_gb", math.nan)
    rows = []
    for name in (known for known in (*VARIANTS, OFFICIAL) if known in measured):
        value = measured[name]
        if "total_gb" not in value:
            rows.append([name, "-", "-", "out of memory" if "out_of_memory" in value else "over the limit", "-", "-"])
            continue
        cells = [f"{value['held_mb']:.0f}", f"{value['growth_mb']:.0f}", f"{value['total_gb']:.2f}"]
        cells.append("-" if math.isnan(naive) else f"{value['total_gb'] / naive:.2f}")
        rows.append([name, *cells, f"{value['cpu_seconds']:.1f}"])
    if factor == 4 and grid in PAPER_GB:
        plain, efficient = PAPER_GB[grid]
        rows.append(["paper: naive", "-", "-", f"{plain:.2f}", "1.00", "-"])
        rows.append(["paper: efficient", "-", "-", f"{efficient:.2f}", f"{efficient / plain:.2f}", "-"])
    return markdown_table(header, rows)


def document(result: dict[str, Any]) -> str:
    """All tables, below what they were measured on."""
    lines = [f"# {result['what']}", "What is measured and how: the docstring of `benchmarks/bench_stage2_memory.py`."]
    runs = []
    for run in result["runs"]:
        machine = run["environment"]
        where = (
            machine.get("gpu") or f"{machine['processor']}, {run['threads']} thread(s), limit {run['limit_gb']:g} GiB"
        )
        runs.append(f"- `{machine['command']}` on {where}, torch {machine['versions']['torch']}")
    lines.append("\n".join(runs))
    for name, measured in result["results"].items():
        factor, grid = name.split("x ")
        lines.append(table(int(factor), grid_of(grid), measured))
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
