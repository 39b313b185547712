"""Slice-conditioned diffusion on the simulated T1w cohort: schemes, steps, and missing slices.

    python benchmarks/bench_slice_conditioned.py --model FOLDER --runs FOLDER --cache FOLDER
        [--volumes 60] [--steps 25] [--long-steps 1000 --long-volumes 20] [--also NAME=FOLDER ...]
        [--cases 20] [--samples 4] [--factors 2 4 8]

Sets: each scheme at --steps; the hierarchical scheme with stages of 12 slices and a context of 8, which takes fewer slices
of deep volumes; the hierarchical scheme with the ancestral sampler of --long-steps (0: left out); and other pipelines of
whole volumes, such as the voxel-space DDPM trained on the same subjects (--also, with their own scheduler and --steps).
Anchor: real subjects. Every set is held against further test subjects that are in none.

MS-SSIM: mean over random pairs within the set; nearer to the real value is better. MMD: of voxels, dot product, × 10³. FID:
16 slices a volume and plane under the extractor cohort-2d. First and last: the slices between which a head is seen (more
than 1 % of a slice above 0.1), and the Wasserstein distance to the real ones, in slices. Jump: mean step between
neighbouring slices over the real one, of all neighbours, of those made in one stage, and of those at the seams of stages.
Calls: of the network, one after the other, for one volume; slices: in all its calls, context included. Seconds: median of a
volume made alone. Intervals are 95 %: over pairs, over volumes (bootstrap), or by a jackknife over volumes.

Missing slices: of --cases further subjects every 2nd, 4th, 8th slice is kept. PSNR and SSIM of the others; linear and cubic
splines; --samples samples, scored one by one and as their mean, whose error is held against their spread, voxel by voxel:
one half of the samples chooses a voxel's bin of spread, the other, n samples, is measured. If the truth is a further sample,
their mean errs by the spread times sqrt(1 + 1/n), the expected error.

Volumes and cases are kept in --runs and never made again: a killed benchmark goes on where it was. Writes NAME.json and
NAME.md below --out, after the sets and after the cases. Needs voxdiff[metrics].
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, environment, write_result
from slice_conditioned_sets import Reference, SampledSet, count_work, make_reference, measure_set, plan, sample_set
from slice_conditioned_sets import seam_places as find_seams
from slice_conditioned_tables import calibration_table, interpolation_table, sets_table
from slice_interpolation import calibrate, restore_case

from voxdiff import Pipeline, SliceConditionedPipeline
from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.intervals import mean_interval
from voxdiff.pipelines.slice_stages import SCHEMES
from voxdiff.workflows.enhancement_manifest import model_hash

REAL = "real subjects"


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"what": (__doc__ or "").splitlines()[0], "environment": environment()}
    result["protocol"] = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    pipe = load(args.model, args.dtype)
    size = pipe.volume_processor.size[0]
    subjects = CohortDataset(2 * args.volumes + args.cases, split="test", size=size, cache_dir=args.cache, cache=False)
    real = [subjects[index]["t1"] for index in range(len(subjects))]
    reference = make_reference(real[args.volumes : 2 * args.volumes], pipe.config["slice_axis"])
    result["sets"] = {REAL: {"volumes": args.volumes, **measure_set(real[: args.volumes], reference)}}
    for wanted in planned_sets(args):
        result["sets"][wanted.name] = run_set(wanted, pipe, reference, args.runs)
        print(wanted.name, flush=True)
    for name, folder in args.also.items():
        wanted = SampledSet(name=name, steps=args.steps, volumes=args.volumes)
        result["sets"][name] = run_set(wanted, load(Path(folder), args.dtype), reference, args.runs)
    write_findings(result, args)
    result["interpolation"] = {
        str(factor): run_factor(factor, pipe, real[2 * args.volumes :], args) for factor in args.factors
    }
    write_findings(result, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the slice-conditioned pipeline")
    parser.add_argument("--also", nargs="*", default=[], help="NAME=FOLDER of other pipelines of whole volumes")
    parser.add_argument("--runs", type=Path, required=True, help="keeps volumes and cases")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--volumes", type=int, default=60, help="a set")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--long-steps", type=int, default=1000, help="of the ancestral sampler; 0: without it")
    parser.add_argument("--long-volumes", type=int, default=20, help="of that set")
    parser.add_argument("--cases", type=int, default=20, help="subjects with missing slices")
    parser.add_argument("--samples", type=int, default=4, help="a case")
    parser.add_argument("--factors", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="slice_conditioned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.volumes < 4 or args.cases < 2 or args.samples < 4 or (args.long_steps and args.long_volumes < 4):
        parser.error("--volumes, --long-volumes and --samples must be at least 4, --cases at least 2")
    if args.long_steps and args.long_volumes > args.volumes:
        parser.error("--long-volumes must not exceed --volumes: the same seeds with few steps are measured beside them")
    if any(factor < 2 for factor in args.factors):
        parser.error("--factors must be 2 or more")
    args.also = dict(pair.partition("=")[::2] for pair in args.also)
    for name, folder in args.also.items():
        if not (Path(folder) / "model_index.json").is_file():
            parser.error(f"--also {name}={folder}: give NAME=FOLDER of a saved pipeline")
    return args


def load(folder: Path, dtype: str) -> Any:
    pipe = Pipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def planned_sets(args: argparse.Namespace) -> list[SampledSet]:
    sets = [
        SampledSet(
            name=f"{scheme}, {args.steps} steps", steps=args.steps, volumes=args.volumes, settings={"scheme": scheme}
        )
        for scheme in SCHEMES
    ]
    wide = {"scheme": "hierarchical", "stage_size": 12, "context_size": 8}
    sets.append(
        SampledSet(
            name=f"hierarchical 12 + 8, {args.steps} steps", steps=args.steps, volumes=args.volumes, settings=wide
        )
    )
    if args.long_steps:
        few = {"scheme": "hierarchical"}
        sets.append(
            SampledSet(
                name=f"{sets[0].name}, as few volumes",
                steps=args.steps,
                volumes=args.long_volumes,
                settings=few,
                folder=sets[0].name,
            )
        )
        sets.append(
            SampledSet(
                name=f"hierarchical, {args.long_steps} ancestral steps",
                steps=args.long_steps,
                volumes=args.long_volumes,
                scheduler="ddpm",
                settings={"scheme": "hierarchical"},
            )
        )
    return sets


def run_set(wanted: SampledSet, pipe: Any, reference: Reference, runs: Path) -> dict[str, Any]:
    """Make what is missing of a set, and measure it."""
    volumes, seconds = sample_set(wanted, pipe, runs / "sets" / model_hash(pipe)[:12])
    depth = volumes[0].shape[1 + reference.axis]
    row: dict[str, Any] = {"volumes": wanted.volumes, "seconds": seconds}
    if not isinstance(pipe, SliceConditionedPipeline):
        return row | {"calls": wanted.steps} | measure_set(volumes, reference)
    stages = plan(pipe, wanted, depth)
    return row | count_work(stages, wanted.steps) | measure_set(volumes, reference, find_seams(stages, depth))


def run_factor(
    factor: int, pipe: SliceConditionedPipeline, cases: list[torch.Tensor], args: argparse.Namespace
) -> dict[str, Any]:
    """Mean scores of every method over the cases, and the calibration of the spread."""
    folder = args.runs / "cases" / model_hash(pipe)[:12] / f"{factor}x-{args.steps}-steps-{args.samples}-samples"
    first = 2 * args.volumes  # of the test subjects
    found = [
        restore_case(
            pipe,
            case[0],
            factor,
            samples=args.samples,
            steps=args.steps,
            path=folder / f"subject-{first + place:04d}.json",
        )
        for place, case in enumerate(cases)
    ]
    methods: dict[str, Any] = {}
    for name, metrics in found[0]["methods"].items():
        for metric in metrics:
            interval = mean_interval(torch.tensor([case["methods"][name][metric] for case in found]).numpy())
            values = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
            methods.setdefault(name, {})[metric] = values
    return {"methods": methods, "calibration": calibrate(found)}


def write_findings(result: dict[str, Any], args: argparse.Namespace) -> None:
    path = write_result(args.name, result | {"load_average_at_end": environment()["load_average"]}, args.out)
    few = f" ({args.long_volumes} of the long sampler)" if args.long_steps else ""
    about = (
        f"{args.volumes} volumes a set{few}. What is measured and how: the docstring of `bench_slice_conditioned.py`."
    )
    blocks = ["# Slice-conditioned diffusion on the simulated cohort", about, sets_table(result["sets"])]
    if found := result.get("interpolation"):
        blocks += [f"## Missing slices of {args.cases} subjects, {args.samples} samples", interpolation_table(found)]
        blocks += ["## Spread of the samples against the error of their mean", calibration_table(found)]
    path.with_suffix(".md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
