"""Does a model of simulated T1w brains generate brains? Statistics of its samples beside anchors of known quality.

    python benchmarks/model_statistics.py [MODEL] --samples outputs/statistics [--ddpm] [--dtype bfloat16]

Each row of the table is a set of volumes: samples with 50-step DPM-Solver++ and, with --ddpm, 1000-step DDPM; and the
anchors: held-out subjects (the reference), other real subjects (what chance alone gives), held-out subjects blurred by
one voxel, the mean image of the training set, one held-out subject repeated. Every set goes through the same
measurements (`voxdiff.metrics.factors`, `.similarity`). Columns: brain and ventricle volume, tissue intensities,
sharpness (mean ± standard deviation over the set), pairwise MS-SSIM, distance to the nearest training subject.

"Distance" is one number a set: the Wasserstein-1 distance of each factor to the held-out subjects', in their standard
deviations, averaged over the factors. A model is on the right side of the last three anchors when it is nearer to the
held-out subjects than each of them, nearer in sharpness than the blurred ones, and nearer to the held-out subjects than
to the repeated one in MS-SSIM and than to the mean image in its distance to the training set. If it is not, or if its
ventricle volumes spread less than half as much as the cohort's, it is undertrained.

MODEL is a pipeline folder, a shipped model or a training checkpoint (`RUN/checkpoint-N`, averaged weights). Samples are
kept in --samples by weights, scheduler, steps, dtype and seed: an interrupted run goes on where it was. Writes
NAME.json, NAME.md (for the model card) and NAME.png below --out. Needs voxdiff[metrics].
"""

import argparse
import hashlib
import json
import os
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, environment, markdown_table, write_result
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from voxdiff import Pipeline, VolumeProcessor, WaveletDiffusionPipeline, WaveletUNet3DModel
from voxdiff.data.anatomy import BRAIN_FOV_MM
from voxdiff.data.cohort import CohortDataset
from voxdiff.hub.registry import resolve_model
from voxdiff.metrics.factors import BrainFactors, brain_factors
from voxdiff.metrics.similarity import ms_ssim, nearest_distances, pairwise_ms_ssim
from voxdiff.schedulers import make_scheduler, swap_scheduler

FACTORS = [field.name for field in fields(BrainFactors)]
HELD_OUT, REAL_AGAIN, BLURRED, MEAN, REPEATED = (
    "held-out subjects",
    "other real subjects",
    "held-out, blurred by 1 voxel",
    "mean image",
    "one subject repeated",
)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    pipe, weights = load_pipeline(args.model, args.dtype, args.device)
    size = pipe.volume_processor.size[0]
    samplers = {f"samples, {args.steps}-step DPM-Solver++": ("dpm++", args.steps)}
    if args.ddpm:
        samplers[f"samples, {args.ddpm_steps}-step DDPM"] = ("ddpm", args.ddpm_steps)

    sampled, seconds = {}, {}
    for name, (scheduler, steps) in samplers.items():
        sampled[name], seconds[name] = sample(pipe, weights, scheduler, steps, args)
    training = cohort("train", args.num_train, size, args.cache_dir)
    held_out = cohort("test", args.num_heldout, size, args.cache_dir)
    anchors = {
        HELD_OUT: held_out,
        REAL_AGAIN: cohort("val", args.num_samples, size, args.cache_dir),
        BLURRED: np.stack([gaussian_filter(volume, 1.0) for volume in held_out]),
        MEAN: training.mean(0, keepdims=True).repeat(2, axis=0),
        REPEATED: held_out[[0, 0]],
    }
    sets = {
        name: measure(volumes, training, size, args.max_pairs, same=name in (MEAN, REPEATED))
        for name, volumes in {**sampled, **anchors}.items()
    }
    reference = sets[HELD_OUT]
    for measured in sets.values():
        compare(measured, reference)
    verdicts = {name: verdict(sets, name) for name in sampled}

    table = make_table(sets, list(sampled))
    result = {
        "what": "statistics of a model's samples beside anchors",
        "model": {"path": str(args.model), "weights_sha256": weights},
        "protocol": {
            "grid": size,
            "samples": args.num_samples,
            "seeds": [args.seed, args.seed + args.num_samples - 1],
            "held_out": args.num_heldout,
            "training_subjects": args.num_train,
            "dtype": args.dtype,
            "ms_ssim": {"scales": 4, "kernel_size": 5, "sigma": 1.0, "data_range": 1.0, "pairs": args.max_pairs},
            "nearest_training_subject": "root mean square difference of the 2x2x2 means",
        },
        "seconds_per_sample": seconds,
        "sets": {name: summary(measured) for name, measured in sets.items()},
        "verdict": verdicts,
        "environment": environment(args.device),
    }
    if args.dtype != "float32" and args.check_dtype:
        result["dtype_check"] = check_dtype(args, pipe)
    write_result(args.name, result, args.out)
    (args.out / f"{args.name}.md").write_text(as_markdown(table, verdicts, result), encoding="utf-8")
    save_montage(args.out / f"{args.name}.png", {HELD_OUT: held_out, **sampled})
    print(as_markdown(table, verdicts, result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="wdm-brain-64", help="pipeline folder, shipped model, checkpoint")
    parser.add_argument("--samples", type=Path, default=Path("outputs/statistics"), help="where samples are kept")
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first sample")
    parser.add_argument("--steps", type=int, default=50, help="steps of DPM-Solver++")
    parser.add_argument("--ddpm", action="store_true", help="also sample with DDPM")
    parser.add_argument("--ddpm-steps", type=int, default=1000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--check-dtype", type=int, default=2, help="samples compared with float32; 0 for none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--batch-size", type=int, default=4, help="samples drawn at once; does not change them")
    parser.add_argument("--num-heldout", type=int, default=100, help="test subjects")
    parser.add_argument("--num-train", type=int, default=1000, help="training subjects the model has seen")
    parser.add_argument("--max-pairs", type=int, default=200, help="pairs a set for MS-SSIM")
    parser.add_argument("--cache-dir", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="model_statistics", help="name of the files written")
    args = parser.parse_args()
    if args.num_samples < 2 or args.num_heldout < 2:
        parser.error("--num-samples and --num-heldout must be at least 2")
    return args


def load_pipeline(model: str, dtype: str, device: str) -> tuple[WaveletDiffusionPipeline, str]:
    """The pipeline in the dtype, and the SHA-256 of the network's weights."""
    if (Path(model) / "training_state.json").is_file():
        folder = Path(model) / "unet_ema"
        pipe = checkpoint_pipeline(Path(model), folder, getattr(torch, dtype))
    else:
        folder = Path(resolve_model(model)) / "unet"
        pipe = Pipeline.from_pretrained(folder.parent, dtype=getattr(torch, dtype))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no safetensors weights; give a local pipeline folder or a checkpoint.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    pipe.unet.to(memory_format=torch.channels_last_3d)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device), digest.hexdigest()


def checkpoint_pipeline(checkpoint: Path, unet: Path, dtype: torch.dtype) -> WaveletDiffusionPipeline:
    """The pipeline of a checkpoint of a run on the brain cohort, from the arguments saved beside it."""
    run = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))["run"]
    data, model = run["data"], run["model"]
    if data["cohort"] != "mr":
        raise SystemExit(f"{checkpoint} was trained on {data['cohort'] or data['train_data_dir']}, not on --cohort mr.")
    size = int(data["resolution"])
    processor = VolumeProcessor(
        size=(size,) * 3, spacing=(BRAIN_FOV_MM / size,) * 3, intensity="window", low=0.0, high=1.0, unit="a.u."
    )
    transform = {}
    if model["band_scales"]:
        transform["band_scales"] = [float(scale) for scale in model["band_scales"].split(",")]
    scheduler = make_scheduler(model["scheduler"] or "wdm-dpm++", prediction_type=model["prediction_type"] or "sample")
    wavelet = None if model["wavelet"] == "none" else "haar"
    network = WaveletUNet3DModel.from_pretrained(unet, dtype=dtype)
    return WaveletDiffusionPipeline(
        network, scheduler, processor=processor.to_dict(), wavelet=wavelet, output_volumes={"t1": 0}, **transform
    )


def sample(
    pipe: WaveletDiffusionPipeline, weights: str, scheduler: str, steps: int, args: argparse.Namespace
) -> tuple[np.ndarray, float | None]:
    """Samples (number, x, y, z) in [0, 1], one a seed, and the seconds a sample took where some were drawn now."""
    folder = args.samples / f"{weights[:12]}-{scheduler}-{steps}-{args.dtype}"
    folder.mkdir(parents=True, exist_ok=True)
    pipe.scheduler = swap_scheduler(pipe.scheduler, scheduler)
    paths = {seed: folder / f"seed-{seed:06d}.npy" for seed in range(args.seed, args.seed + args.num_samples)}
    missing = [seed for seed, path in paths.items() if not path.exists()]
    started = time.perf_counter()
    for first in range(0, len(missing), args.batch_size):
        seeds = missing[first : first + args.batch_size]
        for seed, volume in zip(seeds, draw(pipe, seeds, steps), strict=True):
            temporary = paths[seed].with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, volume)
            os.replace(temporary, paths[seed])
        done, elapsed = first + len(seeds), time.perf_counter() - started
        print(f"{scheduler}, {steps} steps: {done} of {len(missing)}, {elapsed / done:.1f} s each", flush=True)
    seconds = round((time.perf_counter() - started) / len(missing), 2) if missing else None
    return np.stack([np.load(path) for path in paths.values()]), seconds


def draw(pipe: WaveletDiffusionPipeline, seeds: list[int], steps: int) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(batch_size=len(seeds), num_inference_steps=steps, generator=generators, output_type="np")
    return output.volumes[:, 0].astype(np.float32)


def cohort(split: str, number: int, size: int, cache_dir: Path) -> np.ndarray:
    """T1w subjects (number, x, y, z) in [0, 1]."""
    subjects = CohortDataset(number, split=split, size=size, cache_dir=cache_dir, cache=False)
    return np.stack([subjects[index]["t1"][0].numpy() for index in range(number)])


def measure(volumes: np.ndarray, training: np.ndarray, size: int, max_pairs: int, same: bool) -> dict[str, np.ndarray]:
    """Every measurement of a set, one value a volume (MS-SSIM: one a pair)."""
    factors = [asdict(brain_factors(volume, (BRAIN_FOV_MM / size,) * 3)) for volume in volumes]
    tensor = torch.from_numpy(volumes)[:, None]
    pairs = torch.ones(1) if same else pairwise_ms_ssim(tensor, max_pairs=max_pairs)
    distances, _ = nearest_distances(tensor, torch.from_numpy(training)[:, None])
    measured = {name: np.array([values[name] for values in factors]) for name in FACTORS}
    return {**measured, "ms_ssim": pairs.numpy(), "nearest": distances.numpy()}


def compare(measured: dict, reference: dict) -> None:
    """Add the Wasserstein distance of each factor to the reference's, in its standard deviations, and their mean."""
    measured["wasserstein"] = {
        name: float(wasserstein_distance(measured[name], reference[name]) / reference[name].std()) for name in FACTORS
    }
    measured["distance"] = float(np.mean(list(measured["wasserstein"].values())))
    spreads = {"ratio": measured["ventricle_volume_ml"].std() / reference["ventricle_volume_ml"].std()}
    draws = np.random.default_rng(0).choice(measured["ventricle_volume_ml"], (2000, len(measured["nearest"])))
    low, high = np.percentile(draws.std(1) / reference["ventricle_volume_ml"].std(), [2.5, 97.5])
    measured["ventricle_spread"] = {**spreads, "low": low, "high": high}


def verdict(sets: dict[str, dict], name: str) -> dict[str, bool | str]:
    """The checks of the module's docstring for one set of samples."""
    model, real = sets[name], sets[HELD_OUT]
    checks = {
        f"nearer than: {anchor}": model["distance"] < sets[anchor]["distance"] for anchor in (BLURRED, MEAN, REPEATED)
    }
    checks["sharpness nearer than the blurred"] = (
        model["wasserstein"]["sharpness"] < sets[BLURRED]["wasserstein"]["sharpness"]
    )
    checks["MS-SSIM nearer to real than to one repeated"] = is_nearer(model, real, sets[REPEATED], "ms_ssim")
    checks["distance to training nearer to real than to the mean image"] = is_nearer(model, real, sets[MEAN], "nearest")
    checks["ventricle spread at least half"] = bool(model["ventricle_spread"]["ratio"] >= 0.5)
    checks = {check: bool(passed) for check, passed in checks.items()}
    # Not part of the rule: samples nearer to a training subject than any held-out subject is.
    copies = int((model["nearest"] < real["nearest"].min()).sum())
    return {**checks, "suspected copies": str(copies), "verdict": "passes" if all(checks.values()) else "undertrained"}


def is_nearer(model: dict, real: dict, anchor: dict, name: str) -> bool:
    reading = model[name].mean()
    return abs(reading - real[name].mean()) < abs(reading - anchor[name].mean())


def summary(measured: dict) -> dict:
    spread = {
        name: {"mean": float(measured[name].mean()), "sd": float(measured[name].std()), "n": len(measured[name])}
        for name in [*FACTORS, "ms_ssim", "nearest"]
    }
    spread["nearest"]["min"] = float(measured["nearest"].min())
    ventricles = {key: float(value) for key, value in measured["ventricle_spread"].items()}
    return {
        **spread,
        "wasserstein_in_sd": measured["wasserstein"],
        "distance": measured["distance"],
        "ventricle_spread": ventricles,
    }


def make_table(sets: dict[str, dict], models: list[str]) -> str:
    header = ["set", "brain ml", "ventricles ml", "grey", "grey spread", "white", "white spread", "sharpness /mm"]
    header += ["MS-SSIM", "nearest training", "distance"]
    rows = []
    for name in [*models, HELD_OUT, REAL_AGAIN, BLURRED, MEAN, REPEATED]:
        measured = sets[name]
        digits = dict.fromkeys(FACTORS, 3) | {"brain_volume_ml": 0, "ventricle_volume_ml": 1, "sharpness": 4}
        cells = [f"{measured[f].mean():.{digits[f]}f} ± {measured[f].std():.{digits[f]}f}" for f in FACTORS]
        cells += [
            f"{measured['ms_ssim'].mean():.3f}",
            f"{measured['nearest'].mean():.3f}",
            f"{measured['distance']:.2f}",
        ]
        rows.append([name, *cells])
    return markdown_table(header, rows)


def as_markdown(table: str, verdicts: dict[str, dict], result: dict) -> str:
    protocol = result["protocol"]
    first, last = protocol["seeds"]
    sentences = [describe(name, checks, result) for name, checks in verdicts.items()]
    about = (
        f"{protocol['samples']} samples, seeds {first} to {last}, network in {protocol['dtype']}; {protocol['held_out']} "
        f"held-out and {protocol['training_subjects']} training subjects of the simulated cohort at {protocol['grid']}³. "
        "MS-SSIM: mean over pairs, 4 scales, kernel 5, sigma 1. Nearest training subject: root mean square difference of "
        "the 2x2x2 means. Distance: mean over the seven factors of the Wasserstein distance to the held-out subjects, in "
        "their standard deviations."
    )
    return "\n".join([table, "", *sentences, "", about, ""])


def describe(name: str, checks: dict, result: dict) -> str:
    failed = "; ".join(check for check, passed in checks.items() if passed is False)
    spread = result["sets"][name]["ventricle_spread"]
    return (
        f"{name[0].upper()}{name[1:]}: **{checks['verdict']}**{f' (fails: {failed})' if failed else ''}. Spread of "
        f"ventricle volume {spread['ratio']:.2f} of the cohort's (95 % interval {spread['low']:.2f} to "
        f"{spread['high']:.2f}); {checks['suspected copies']} of {result['protocol']['samples']} samples lie nearer to a "
        "training subject than any held-out subject does."
    )


def check_dtype(args: argparse.Namespace, pipe: WaveletDiffusionPipeline) -> dict[str, float]:
    """The same seeds in float32 and in the run's dtype."""
    exact, _ = load_pipeline(args.model, "float32", args.device)
    seeds = list(range(args.seed, args.seed + args.check_dtype))
    for each in (pipe, exact):
        each.scheduler = swap_scheduler(each.scheduler, "dpm++")
    fast, slow = draw(pipe, seeds, args.steps), draw(exact, seeds, args.steps)
    mean_square = float(((fast - slow) ** 2).mean())
    similarity = ms_ssim(torch.from_numpy(fast)[:, None], torch.from_numpy(slow)[:, None])
    spacing = (BRAIN_FOV_MM / fast.shape[-1],) * 3
    ventricles = [[brain_factors(v, spacing).ventricle_volume_ml for v in volumes] for volumes in (fast, slow)]
    return {
        "samples": len(seeds),
        "mean_absolute_difference": float(np.abs(fast - slow).mean()),
        "largest_difference": float(np.abs(fast - slow).max()),
        "psnr_db": float(-10 * np.log10(max(mean_square, 1e-12))),
        "ms_ssim": float(similarity.mean()),
        "ventricle_difference_ml": float(np.abs(np.subtract(*ventricles)).mean()),
    }


def save_montage(path: Path, sets: dict[str, np.ndarray], columns: int = 5) -> None:
    """Three planes of the first volumes of each set, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(sets), figsize=(1.55 * columns * len(sets), 4.9), squeeze=False)
    for axis, (name, volumes) in zip(axes[0], sets.items(), strict=True):
        middle = volumes.shape[-1] // 2
        planes = [volumes[:columns, :, :, middle + 2], volumes[:columns, :, middle + 4], volumes[:columns, middle]]
        rows = [np.concatenate([plane.T[::-1] for plane in row], axis=1) for row in planes]
        axis.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
