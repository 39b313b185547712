"""Pictures of a slice-conditioned model: subjects, the same with missing slices restored, and volumes from nothing.

    python benchmarks/slice_conditioned_pictures.py --model FOLDER --cache FOLDER --out PICTURE.png
        [--factor 4] [--samples 4] [--steps 25] [--subjects 3] [--first 60] [--seed 0]

Test subjects of the simulated cohort from --first on.
"""

import argparse
from pathlib import Path

import torch
from slice_interpolation import LINEAR, MEAN, ONE, interpolate, restore

from voxdiff import Pipeline
from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.pictures import save_montage


def main() -> None:
    args = parse_arguments()
    pipe = Pipeline.from_pretrained(args.model, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.volume_processor.size[0]
    subjects = CohortDataset(args.first + args.subjects, split="test", size=size, cache_dir=args.cache, cache=False)
    axis = pipe.config["slice_axis"]
    sets: dict[str, list[torch.Tensor]] = {}
    for place in range(args.subjects):
        subject = subjects[args.first + place]["t1"][0]
        real, output = restore(pipe, subject, args.factor, samples=args.samples, steps=args.steps, seed=args.seed)
        samples = output.volumes[:, 0]
        linear = interpolate(real.movedim(axis, -1), args.factor, 1).movedim(-1, axis)
        generator = torch.Generator().manual_seed(args.seed + place)
        new = pipe(num_inference_steps=args.steps, generator=generator, output_type="pt").volumes[0, 0]
        shown = {"real": real, f"every {args.factor}th slice, {LINEAR}": linear, ONE: samples[0], MEAN: samples.mean(0)}
        for name, volume in (shown | {"from nothing": new.narrow(axis, 0, real.shape[axis])}).items():
            sets.setdefault(name, []).append(volume[None])
    save_montage(args.out, sets, count=args.subjects)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    parser.add_argument("--factor", type=int, default=4, help="every which slice is kept")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--first", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.factor < 2 or min(args.samples, args.steps, args.subjects) < 1:
        parser.error("--factor must be at least 2; --samples, --steps and --subjects at least 1")
    return args


if __name__ == "__main__":
    main()
