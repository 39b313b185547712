"""Informed slices on held-out masks of the simulated cohort: GEM-3D's grid, known slices, and the number of steps.

    python benchmarks/bench_informed_slices.py --gem FOLDER --baseline FOLDER --runs FOLDER --cache FOLDER
        [--cohort flair|ct] [--volumes 60] [--sweep-volumes 20] [--steps 10 20 50 200]
        [--known-slice-noise clean matched official]

Every set has one volume for each of the first test subjects' masks. "own slice" has the informed slice of the mask's own
subject (the paper's test mode), IC that of another test subject, IG one that the slice model made; the baseline is
Make-A-Volume, trained apart. "+ MA" changes the masks first. The sweeps have the own slice: by the number of steps with
known slices clean, by the rule of the known slices at --default-steps, and with DDIM's steps with eta 1, the published
sampler.

"to own": MS-SSIM (in 3D; the paper's is of axial slices) and the perceptual distance to the real volume of the same
mask, without MA. MS-SSIM within the set: random pairs, to be held against that of the real volumes. FID-A/C/S: of 16
axial, coronal and sagittal slices a volume under the extractor cohort-2d, to --references training subjects, as in the
paper. Jump: the mean step between axial slices over that of the real volumes at the same places, at the seams of
windows and elsewhere. Intervals are 95 %: over volumes (bootstrap, paired for differences), over pairs, or for FID by a
jackknife over volumes of both sets.
The anchors: the real volumes themselves, and the autoencoder's reconstructions, which no set can be expected to beat.

A model with a known-slice indicator was trained on clean known slices alone: "matched" and "official" then show it what
it never saw. Sets and measurements are kept in --runs and never repeated: a killed benchmark goes on where it was.
Writes NAME.json and NAME.md below --out, after the grid and after the sweeps.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from informed_slice_measures import Reference, make_reference
from informed_slice_records import measured_set
from informed_slice_sets import (
    AUGMENTED,
    BASELINE,
    GEM,
    VolumeSet,
    cohort_cases,
    grid_sets,
    load_models,
    make_set,
    reconstruct,
    seam_places,
    sweep_sets,
    unit_volume,
)
from informed_slice_tables import compare_sets, comparison_table, set_values, values_table
from record import RESULTS, environment, write_result

from voxdiff import InformedSlicePipeline
from voxdiff.metrics.perceptual import load_perceptual
from voxdiff.pipelines.known_slices import KNOWN_SLICE_NOISES
from voxdiff.workflows.enhancement_manifest import model_hash

REAL, RECONSTRUCTED, TRAINING = "real", "autoencoder", "training"


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    described = environment()
    models = load_models(args.gem, args.baseline, args.dtype)
    count = max(args.volumes, args.sweep_volumes)
    cases, processor = cohort_cases(args.cohort, "test", count, args.cache), models[GEM].volume_processor
    known = cohort_cases(args.cohort, "train", args.references, args.cache)
    real = {case.name: unit_volume(case.image, processor) for case in cases}
    reference = make_reference(real, load_perceptual())
    found = {
        TRAINING: measured_set(
            args.runs,
            "training-subjects",
            lambda: [unit_volume(case.image, processor) for case in known],
            [case.name for case in known],
            reference,
            describe=False,
        )
    }
    for name, volumes in anchors(models[GEM], list(real.values())[: args.volumes]).items():
        key = {"model": model_hash(models[GEM]) if name == RECONSTRUCTED else None}
        cells = list(real)[: args.volumes]
        found[name] = measured_set(args.runs, name, volumes, cells, reference, protocol=key, paired=name != REAL)
    for sets in planned(args, has_generator=models[GEM].slice_unet is not None):
        found |= {wanted.name: measure(wanted, models, cases, reference, args) for wanted in sets}
        write_findings(args, found, described, reference)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gem", type=Path, required=True, help="the pipeline")
    parser.add_argument("--baseline", type=Path, help="the pipeline of Make-A-Volume; without it its sets are left out")
    parser.add_argument("--runs", type=Path, required=True, help="keeps sets and measurements")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--cohort", default="flair", choices=("flair", "ct"))
    parser.add_argument("--volumes", type=int, default=60, help="a set")
    parser.add_argument("--sweep-volumes", type=int, default=20, help="a set of the sweeps")
    parser.add_argument("--references", type=int, default=300, help="training subjects that FID is measured to")
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 20, 50, 200])
    parser.add_argument("--ancestral-steps", type=int, nargs="*", default=[50], help="of DDIM with eta 1, as published")
    parser.add_argument("--known-slice-noise", nargs="*", default=list(KNOWN_SLICE_NOISES), choices=KNOWN_SLICE_NOISES)
    parser.add_argument("--default-steps", type=int, default=20, help="of the grid")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="informed_slices")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def planned(args: argparse.Namespace, *, has_generator: bool) -> list[list[VolumeSet]]:
    """The grid, and the sweeps."""
    grid = grid_sets(args.default_steps, args.volumes, generator=has_generator)
    sweeps = sweep_sets(
        args.steps,
        args.known_slice_noise,
        args.ancestral_steps,
        default=args.default_steps,
        volumes=args.sweep_volumes,
    )
    return [[wanted for wanted in grid if args.baseline or wanted.model != BASELINE], sweeps]


def anchors(pipe: InformedSlicePipeline, volumes: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Real volumes, and the same through the autoencoder, made when they are measured."""
    return {
        REAL: lambda: list(volumes),
        RECONSTRUCTED: lambda: [reconstruct(pipe, volume) for volume in volumes],
    }


def measure(
    wanted: VolumeSet,
    models: Mapping[str, InformedSlicePipeline],
    cases: Sequence[Any],
    reference: Reference,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Make and measure a set, as far as that was not done."""
    print(time.strftime("%H:%M:%S"), wanted.name, flush=True)
    pipe = models[wanted.model]
    made = make_set(wanted, models, cases, args.runs / "sets", batch_size=args.batch_size)
    depth = next(iter(reference.volumes.values())).shape[-1]
    return measured_set(
        args.runs,
        wanted.folder,
        lambda: [unit_volume(entry["image"], pipe.volume_processor) for entry in made],
        [entry["case"] for entry in made],
        reference,
        seams=seam_places(pipe.plan(depth, depth // 2)),
        paired=not wanted.augmented,
        protocol={"model": model_hash(pipe)},
    )


def comparisons(names: Sequence[str], args: argparse.Namespace) -> list[tuple[str, str]]:
    """Pairs of sets whose difference is told, of those that are there."""
    basic = [("own slice", "baseline"), ("IC", "baseline"), ("IG", "baseline"), ("IC", "IG")]
    pairs = basic + [(first + AUGMENTED, second + AUGMENTED) for first, second in basic[1:]]
    default = args.default_steps
    pairs += [
        (f"own slice, clean, {default} steps", f"own slice, {noise}, {default} steps")
        for noise in ("matched", "official")
    ]
    pairs += [
        (f"own slice, clean, {count} DDIM steps", f"own slice, clean, {count} steps") for count in args.ancestral_steps
    ]
    if args.steps:
        most = max(args.steps)
        pairs += [
            (f"own slice, clean, {count} steps", f"own slice, clean, {most} steps")
            for count in args.steps
            if count != most
        ]
    return [pair for pair in pairs if set(pair) <= set(names)]


def write_findings(
    args: argparse.Namespace, found: Mapping[str, Any], described: dict[str, Any], reference: Reference
) -> None:
    """Summarise all sets that are there by now."""
    sets = {name: record for name, record in found.items() if name != TRAINING}
    features = {name: record["features"] for name, record in sets.items()}
    training = found[TRAINING]["features"]
    values = {name: set_values(record, features[name], training) for name, record in sets.items()}
    compared = [
        entry
        for pair in comparisons(list(sets), args)
        for entry in compare_sets(args.cohort, pair, sets, features, training)
    ]
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    result = {"what": (__doc__ or "").splitlines()[0], "protocol": protocol, "values": values, "comparisons": compared}
    result |= {"perceptual": reference.backbone.name, "environment": described}
    path = write_result(args.name, result | {"load_average_at_end": environment()["load_average"]}, args.out)
    settings = (
        f"Cohort {args.cohort}, {args.volumes} volumes a set of the grid at {args.default_steps} steps, "
        f"{args.sweep_volumes} a set of the sweeps, FID to {args.references} training subjects; the perceptual distance is "
        f'{reference.backbone.name}. A changed mask (MA) has no real volume of its own: its columns "to own" are empty. '
        "What is measured and how: the docstring of `benchmarks/bench_informed_slices.py`."
    )
    blocks = ["# Informed slices on the simulated cohort", settings, values_table(values), comparison_table(compared)]
    path.with_suffix(".md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
