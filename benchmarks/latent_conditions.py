"""Do class, grid and ventricle volume move what `pvldm-cohort-64` generates, and by how much?

    python benchmarks/latent_conditions.py MODEL [--cache FOLDER] [--samples 64] [--steps 50] [--guidance 1 2]

Ventricles: samples of the MR class are asked for ventricle volumes evenly spaced between the 5th and the 95th percentile
of the training subjects; the correlation of what was asked with what `voxdiff.metrics.factors` measures stands beside the
same measurement of held-out subjects with known volumes, and of their reconstructions by the autoencoder, which no sample
can be expected to beat. "Low and high" samples share their noise. Classes and grids: each class on each grid from the same
noise; how far apart two classes are beside two noises of one class. Intervals of correlations are Fisher's, 95 %.
Writes NAME.json and NAME.md below --out, and a picture: classes and grids, then low, middle and high ventricles.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, environment, markdown_table, write_result
from scipy.stats import pearsonr, spearmanr

from voxdiff import PatchVolumeLDMPipeline
from voxdiff.metrics.factors import brain_factors
from voxdiff.metrics.pictures import save_montage
from voxdiff.training.class_sources import VolumeSource, cohort_source
from voxdiff.volumes import atomic_path

SCALAR = "ventricle_volume_ml"
CLASSES, GRIDS = ("mr", "ct"), ((64, 64, 64), (64, 64, 48))
FIRST_SEED = 5000


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    described = environment()
    pipe = PatchVolumeLDMPipeline.from_pretrained(args.model)
    pipe.unet.to(getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    training = cohort_source("mr", GRIDS[0], args.cache, num_subjects=600, split="train", scalar_names=(SCALAR,))
    low, high = np.percentile([scalars[SCALAR] for scalars in training.scalars], [5, 95])
    held_out = cohort_source("mr", GRIDS[0], args.cache, num_subjects=args.real, split="test", scalar_names=(SCALAR,))
    rows = {"held-out subjects": real_row(held_out, None), "their reconstructions": real_row(held_out, pipe)}
    asked = np.linspace(low, high, args.samples)
    for scale in args.guidance:
        volumes = [
            sample(pipe, "mr", GRIDS[0], float(value), FIRST_SEED + i, scale, args) for i, value in enumerate(asked)
        ]
        rows[f"samples, guidance {scale:g}"] = row(asked, volumes, spacing_of(pipe, "mr"))
    pictures, classes = classes_and_grids(pipe, args)
    for name, value in (("low", low), ("middle", (low + high) / 2), ("high", high)):
        pictures[f"{value:.0f} ml"] = [
            sample(pipe, "mr", GRIDS[0], float(value), FIRST_SEED + i, args.guidance[-1], args) for i in range(4)
        ]
        rows[f"{name}, {value:.1f} ml asked, same noise"] = {
            "measured": [ventricles(volume, spacing_of(pipe, "mr")) for volume in pictures[f"{value:.0f} ml"]]
        }
    save_montage(args.out / f"{args.name}.png", pictures, count=4)
    settings = {"steps": args.steps, "dtype": args.dtype, "samples": args.samples, "first_seed": FIRST_SEED}
    result = {"environment": described, "settings": settings, "ventricles": rows, "classes": classes}
    write_result(args.name, result, args.out)
    with atomic_path(args.out / f"{args.name}.md") as path:
        path.write_text(document(rows, classes), encoding="utf-8")
    print(document(rows, classes))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the pipeline")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--real", type=int, default=64, help="held-out subjects")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="pvldm-cohort-64-conditions")
    return parser.parse_args()


@torch.inference_mode()
def sample(
    pipe: PatchVolumeLDMPipeline,
    label: str,
    grid: Sequence[int],
    value: float | None,
    seed: int,
    guidance: float,
    args: argparse.Namespace,
) -> torch.Tensor:
    """A volume ``(1, x, y, z)`` in [0, 1]; the scalar is left out where None."""
    scalars = None if value is None else {SCALAR: value}
    generator = torch.Generator().manual_seed(seed)
    latents = pipe(
        label,
        size=grid,
        scalars=scalars,
        guidance_scale=guidance,
        num_inference_steps=args.steps,
        generator=generator,
        output_type="latent",
    ).volumes
    return (pipe.decode(latents)[0].clamp(-1, 1) + 1) / 2


@torch.inference_mode()
def real_row(source: VolumeSource, pipe: PatchVolumeLDMPipeline | None) -> dict:
    """Known against measured volumes of real subjects, as they are or through the autoencoder."""
    volumes = [source.volume(index) for index in range(len(source))]
    if pipe is not None:
        volumes = [pipe.decode(pipe.encode(volume[None]))[0].clamp(-1, 1) for volume in volumes]
    known = np.array([scalars[SCALAR] for scalars in source.scalars])
    return row(known, [(volume + 1) / 2 for volume in volumes], source.processor.spacing)


def row(asked: np.ndarray, volumes: Sequence[torch.Tensor], spacing: Sequence[float]) -> dict:
    """Correlation, its interval and slope of measured over asked ventricle volumes."""
    measured = np.array([ventricles(volume, spacing) for volume in volumes])
    r = float(pearsonr(asked, measured).statistic)
    half = 1.96 / math.sqrt(len(asked) - 3)
    return {
        "number": len(asked),
        "pearson": r,
        "interval": [math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)],
        "spearman": float(spearmanr(asked, measured).statistic),
        "slope": float(np.polyfit(asked, measured, 1)[0]),
        "asked": asked.tolist(),
        "measured": measured.tolist(),
    }


def ventricles(volume: torch.Tensor, spacing: Sequence[float]) -> float:
    return brain_factors(volume[0].numpy(), spacing).ventricle_volume_ml


def spacing_of(pipe: PatchVolumeLDMPipeline, label: str) -> Sequence[float]:
    return pipe.processor_of(label).spacing


def classes_and_grids(pipe: PatchVolumeLDMPipeline, args: argparse.Namespace) -> tuple[dict, dict]:
    """Volumes of each class and grid from the same noise, and how far apart they are (root mean square, [0, 1])."""
    pictures, result = {}, {}
    for grid in GRIDS:
        volumes = {
            label: [sample(pipe, label, grid, None, FIRST_SEED + i, 1.0, args) for i in range(4)] for label in CLASSES
        }
        name = "x".join(map(str, grid))
        pictures |= {f"{label} {name}": found for label, found in volumes.items()}
        pairs = [(i, j) for i in range(4) for j in range(i)]
        result[name] = {
            "shape": list(volumes["mr"][0].shape[1:]),
            "mr against ct, same noise": np.mean([rms(a, b) for a, b in zip(*volumes.values(), strict=True)]).item(),
            **{
                f"{label} against {label}, other noise": np.mean([rms(found[i], found[j]) for i, j in pairs]).item()
                for label, found in volumes.items()
            },
        }
    return pictures, result


def rms(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).square().mean().sqrt().item()


def document(rows: dict, classes: dict) -> str:
    """Both tables."""
    correlations = [
        [
            name,
            str(found["number"]),
            f"{found['pearson']:.2f} ({found['interval'][0]:.2f} to {found['interval'][1]:.2f})",
            f"{found['spearman']:.2f}",
            f"{found['slope']:.2f}",
            f"{np.mean(found['measured']):.1f} ± {np.std(found['measured']):.1f}",
        ]
        for name, found in rows.items()
        if "pearson" in found
    ]
    titles = ["ventricle volume", "number", "Pearson (95 %)", "Spearman", "slope", "measured ml"]
    steps = "; ".join(
        f"{name}: {', '.join(f'{value:.1f}' for value in found['measured'])}"
        for name, found in rows.items()
        if "pearson" not in found
    )
    distances = [
        [name, *(f"{value:.3f}" for key, value in found.items() if key != "shape")] for name, found in classes.items()
    ]
    names = ["grid", *(key for key in next(iter(classes.values())) if key != "shape")]
    return f"{markdown_table(titles, correlations)}\n\nMeasured ml: {steps}.\n\n{markdown_table(names, distances)}\n"


if __name__ == "__main__":
    main()
