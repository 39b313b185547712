"""Checks that need a GPU: goldens, precision, torch.compile, pipeline and slab decoding on CUDA. Exits with 1 on a failure.

    python benchmarks/gpu_check.py [--device cuda]

Errors are relative, |out - reference| / |reference|, against float64 on the CPU, on random inputs. With --device cpu the
script checks itself; torch.compile then stops at finding graph breaks, slabs decode 32³ and their memory is not checked.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from turns import measure_call

from voxdiff import (
    AutoencoderPatchVolume,
    Pipeline,
    VolumeProcessor,
    WaveletDiffusionPipeline,
    WaveletUNet3DModel,
    convert_state_dict,
)
from voxdiff.hub.registry import DEFAULT_MODEL, shipped_models
from voxdiff.hub.registry import resolve_model as find_model
from voxdiff.models.axis_order import from_network, to_network
from voxdiff.models.slab_decoding import SlabDecoder
from voxdiff.schedulers import make_scheduler, swap_scheduler
from voxdiff.wavelets import haar_analysis, haar_synthesis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from goldens import load_golden

PATCH_VOLUME_WIDTHS = {"8x": (48, 96, 192, 192), "4x": (48, 96, 96)}
SLAB_TOLERANCE = 1e-5
SLAB_OVERRUN = 1.1  # what a convolution library takes beside its operands is only estimated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
    checks: list[Callable[[torch.device], str]] = [
        check_goldens,
        check_precision,
        check_wavelets,
        check_compile,
        check_pipeline,
        check_generators,
        check_shipped_model,
        check_slice_networks,
        check_patch_volume,
        check_slab_decoding,
    ]
    failed = 0
    for check in checks:
        started = time.perf_counter()
        try:
            outcome = "ok    " + check(device)
        except Exception as error:
            failed += 1
            outcome = f"FAILED {type(error).__name__}: {error}"
        print(f"{check.__name__:22s} {time.perf_counter() - started:6.1f} s  {outcome}", flush=True)
    raise SystemExit(1 if failed else 0)


def check_goldens(device: torch.device) -> str:
    """The official networks' outputs, at the files' tolerance."""
    errors = []
    for name in ("wdm", "cwdm"):
        meta, state, inputs, outputs = load_golden(f"{name}_unet")
        network = convert_state_dict(name, state, norm_num_groups=meta["config"]["model"]["num_groups"]).to(device)
        timesteps = torch.tensor(meta["config"]["timesteps"], device=device)
        with torch.no_grad():
            result = network(inputs["x"].to(device), timesteps).sample.cpu()
        errors.append(float((result - outputs["y"]).abs().max()))
        expect(errors[-1] <= meta["atol"], f"{name} differs by {errors[-1]:.1e}, the tolerance is {meta['atol']}")
    return f"largest difference {max(errors):.1e}"


def check_precision(device: torch.device) -> str:
    """The published network in float32 and bfloat16, both memory formats."""
    network, sample = published_network(), torch.randn(1, 8, 16, 16, 16)
    with torch.no_grad():
        reference = network.double()(sample.double(), 500).sample
    errors = {}
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            twin = torch.nn.Module.to(network, device, dtype).to(memory_format=memory_format)
            given = sample.to(device, dtype).contiguous(memory_format=memory_format)
            with torch.no_grad():
                error = relative_error(twin(given, 500).sample, reference)
            name = f"{str(dtype)[6:]}{' channels_last_3d' if memory_format == torch.channels_last_3d else ''}"
            errors[name] = error
            expect(error < limit, f"{name} is off by {error:.1e}, the limit is {limit}")
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def check_wavelets(device: torch.device) -> str:
    volume = torch.randn(1, 1, 64, 64, 64, device=device)
    bands = haar_analysis(volume)
    error = relative_error(haar_synthesis(bands), volume.double())
    expect(error < 1e-6, f"reconstruction is off by {error:.1e}")
    exact = relative_error(bands, haar_analysis(volume.double().cpu()))
    expect(exact < 1e-6 and bands.is_contiguous(), f"bands are off by {exact:.1e}, contiguous: {bands.is_contiguous()}")
    return f"reconstruction {error:.1e}"


def check_compile(device: torch.device) -> str:
    """One graph, no break, the same output; training too."""
    network = torch.nn.Module.to(small_network(), device)
    sample = torch.randn(2, 8, 16, 16, 16, device=device)
    compiled = torch.compile(network, fullgraph=True, backend="inductor" if device.type == "cuda" else "eager")
    timestep = torch.tensor([10, 900], device=device)
    expected = network(sample, timestep).sample
    result = compiled(sample, timestep, return_dict=False)[0]
    error = relative_error(result, expected.double())
    expect(error < 1e-4, f"the compiled network is off by {error:.1e}")
    result.square().mean().backward()
    expect(all(p.grad is not None for p in network.parameters()), "a parameter of the compiled network has no gradient")
    return f"off by {error:.1e}"


def check_pipeline(device: torch.device) -> str:
    """The same seeds on the device and on the CPU, with a multistep and with an ancestral sampler."""
    errors = []
    for scheduler in ("dpm++", "ddpm"):
        pipe = small_pipeline()
        pipe.scheduler = swap_scheduler(pipe.scheduler, scheduler)
        volumes = []
        for place in ("cpu", device):
            generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            call = {"batch_size": 2, "num_inference_steps": 5, "generator": generators, "output_type": "pt"}
            volumes.append(pipe.to(place)(**call).volumes.cpu())
        errors.append(float((volumes[0] - volumes[1]).abs().max()))
        expect(errors[-1] < 1e-3, f"{scheduler} differs from the CPU by {errors[-1]:.1e}")
    return f"largest difference to the CPU {max(errors):.1e}"


def check_generators(device: torch.device) -> str:
    """Sample 1 of a batch equals the sample drawn alone, with generators that live on the device."""
    pipe = small_pipeline().to(device)
    pipe.scheduler = swap_scheduler(pipe.scheduler, "ddpm")

    def draw(seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        call = {"batch_size": len(seeds), "num_inference_steps": 4, "generator": generators, "output_type": "pt"}
        return pipe(**call).volumes

    error = float((draw([0, 1])[1] - draw([1])[0]).abs().max())
    expect(error <= 1e-5, f"a sample changes by {error:.1e} with its batch")
    return f"largest difference {error:.1e}"


def check_shipped_model(device: torch.device) -> str:
    if DEFAULT_MODEL not in shipped_models():
        return f"no {DEFAULT_MODEL} in this checkout: left out"
    pipe = Pipeline.from_pretrained(find_model(DEFAULT_MODEL), dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    steps = 50 if device.type == "cuda" else 2
    volume = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt").volumes
    expect(bool(torch.isfinite(volume).all()), "the shipped model gives non-finite voxels")
    return f"{steps} steps in {time.perf_counter() - started:.2f} s, first call"


@torch.no_grad()
def check_slice_networks(device: torch.device) -> str:
    """The official networks of GEM-3D and FDM, the latter with its early cut to the targets too."""
    errors = {}
    meta, state, inputs, outputs = load_golden("gem_pseudo3d")
    network = convert_state_dict("gem3d-stage2", state).to(device)
    window, timesteps = inputs["x"].permute(1, 2, 3, 0)[None], torch.tensor(meta["config"]["window_timesteps"])
    result = network(window.to(device), timesteps.to(device)).sample[0].permute(3, 0, 1, 2)
    errors["GEM-3D"] = golden_error("GEM-3D", {"y": result}, outputs, meta["atol"])

    meta, state, inputs, outputs = load_golden("cdpm_unet")
    network = convert_state_dict("fdm", state).to(device)
    sample, known_slices = (inputs[name].permute(0, 2, 3, 4, 1).to(device) for name in ("x", "x0"))
    known = torch.tensor(meta["config"]["observed"], device=device).bool()
    slots = {"known": known, "positions": torch.tensor(meta["config"]["frame_indices"], device=device)}
    timesteps = torch.tensor(meta["config"]["timesteps"], device=device)
    for targets_only in (False, True):
        result = network(sample, timesteps, known_slices=known_slices, **slots, targets_only=targets_only).sample
        shown = torch.ones_like(known) if not targets_only else ~known
        compared = {"y": (result.permute(0, 4, 1, 2, 3) * shown[..., None, None, None])}
        expected = {"y": outputs["y"] * shown.cpu()[..., None, None, None]}
        name = "FDM, targets only" if targets_only else "FDM"
        errors[name] = golden_error(name, compared, expected, meta["atol"])
    return "largest differences " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def check_patch_volume(device: torch.device) -> str:
    """The official Patch-Volume autoencoders' codes, and their and the BiFlowNets' outputs at the files' tolerance."""
    errors = {}
    for factor in PATCH_VOLUME_WIDTHS:
        name = f"med_autoencoder_{factor}"
        meta, state, inputs, outputs = load_golden(name)
        overrides = {"norm_num_groups": meta["config"]["model"]["num_groups"]}
        overrides["patch_size"] = meta["config"]["model"]["patch_size"]
        vae = convert_state_dict("med-autoencoder", state, **overrides).to(device)
        with torch.no_grad():
            latents = vae.encode(from_network(inputs["volume"].to(device), "zxy")).latents
            decoded = {"joint_decode": vae.decode(latents).sample, "patch_decode": vae.decode_patches(latents).sample}
        codes = vae.quantize_latents(latents).unsqueeze(1)
        expect(to_network(codes, "zxy")[:, 0].cpu().equal(outputs["codes"].long()), f"{name} gives other codes")
        results = {key: to_network(result, "zxy") for key, result in {"latent": latents, **decoded}.items()}
        errors[name] = golden_error(name, results, outputs, meta["atol"])
    for name in ("med_biflownet_class", "med_biflownet_uncond"):
        meta, state, inputs, outputs = load_golden(name)
        config, sizes = meta["config"], meta["config"]["model"]
        overrides = {"norm_num_groups": sizes["resnet_groups"], "num_dit_heads": sizes["DiT_num_heads"]}
        unet = convert_state_dict("med-biflownet", state, **overrides).to(device)
        labels = None if config["labels"] is None else torch.tensor(config["labels"], device=device)
        timesteps = torch.tensor(config["timesteps"], device=device)
        with torch.no_grad():
            result = unet(from_network(inputs["x"].to(device), "zxy"), timesteps, labels).sample
        errors[name] = golden_error(name, {"y": to_network(result, "zxy")}, outputs, meta["atol"])
    return "largest differences " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def check_slab_decoding(device: torch.device) -> str:
    """The published decoders in float32: slabs against the whole decode, and the memory they take against the budget."""
    on_cuda = device.type == "cuda"
    size, outcomes = 128 if on_cuda else 32, []
    for factor, widths in PATCH_VOLUME_WIDTHS.items():
        torch.manual_seed(0)
        vae = AutoencoderPatchVolume(block_out_channels=widths).eval().to(device)
        latents = torch.randn(1, 8, *(size // vae.compression,) * 3).to(device)
        with torch.no_grad():
            whole = vae.decode(latents).sample
        plan = SlabDecoder(vae.decoder, 1000.0).plan(tuple(latents.shape), torch.float32)
        least = plan.minimum_bytes / 2**30
        for budget in sorted({least, max(least, plan.peak_bytes / 4 / 2**30)}):
            vae.enable_slab_decoding(max_memory_gb=budget)
            run, volume = measure_call(lambda vae=vae, latents=latents: decoded_sample(vae, latents), str(device))
            error, share = relative_error(volume, whole), run["peak_memory_mb"] / 2**10 / budget
            name = f"{factor} {size}³ within {budget:.3f} GiB"
            expect(error <= SLAB_TOLERANCE, f"{name} is off by {error:.1e}, the limit is {SLAB_TOLERANCE}")
            expect(not on_cuda or share <= SLAB_OVERRUN, f"{name} takes {share:.2f} of its budget")
            outcomes.append(f"{name}: off by {error:.1e}" + (f", {share:.2f} of the budget taken" if on_cuda else ""))
    return "; ".join(outcomes)


def golden_error(
    name: str, results: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor], tolerance: float
) -> float:
    """The largest difference of the results to the golden outputs of their names, which must keep the tolerance."""
    errors = {key: float((result.cpu() - outputs[key]).abs().max()) for key, result in results.items()}
    for key, error in errors.items():
        expect(error <= tolerance, f"{key} of {name} differs by {error:.1e}, the tolerance is {tolerance}")
    return max(errors.values())


@torch.no_grad()
def decoded_sample(vae: AutoencoderPatchVolume, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents).sample


def published_network() -> WaveletUNet3DModel:
    torch.manual_seed(0)
    return filled(WaveletUNet3DModel())


def small_network() -> WaveletUNet3DModel:
    torch.manual_seed(0)
    return filled(WaveletUNet3DModel(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8))


def filled(network: WaveletUNet3DModel) -> WaveletUNet3DModel:
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval()


def small_pipeline() -> WaveletDiffusionPipeline:
    processor = VolumeProcessor(size=(32, 32, 32), spacing=(2.0, 2.0, 2.0), intensity="minmax").to_dict()
    pipe = WaveletDiffusionPipeline(small_network(), make_scheduler("wdm-dpm++"), processor=processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    difference = result.detach().cpu().double() - reference.detach().cpu().double()
    error = float(difference.norm() / reference.detach().cpu().double().norm())
    expect(error == error, "the result is not finite")
    return error


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


if __name__ == "__main__":
    main()
