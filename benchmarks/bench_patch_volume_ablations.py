"""The ablations of 3D MedDiffusion, small, on the simulated MR cohort: are the paper's directions found again?

    python benchmarks/bench_patch_volume_ablations.py --runs FOLDER --cache FOLDER [--parts a b c d e] [--seeds 2]

T1w brains at 64³ in patches of 16³, the four-fold autoencoder and BiFlowNet (sub-volumes as large as a patch) with small
widths, each trained by the product's own scripts in a process of its own for a few hundred steps:

- a: joint decoder (``--stage volume``) against the patch decoder, which also goes on for as long on as many voxels;
- b: losses: L1 and commitment; + adversarial (with feature matching); + tri-plane perceptual (a slice a plane, the
  substitute of VGG), all decoded patch by patch;
- c: BiFlowNet with transformer blocks, with convolutional blocks in their place, and without the intra-patch flow;
- d: latents of an autoencoder that encodes whole volumes, trained on as many voxels, against patch-wise ones;
- e: diffusion on two grids (64³ and 64x64x48) against 64³ alone, at as many steps in all, asked for either grid.

"border / elsewhere" is the mean squared difference of neighbouring voxels on two sides of a patch border over that of
all others; "seam" is the absolute logarithm of its ratio to the original's, 0 without seams. FID and KID are those of
the extractor cohort-3d between generated and test volumes, beside those of training against test volumes, of the mean
of the training volumes and of one of them repeated: between two sets that are both farther than the mean volume, they
decide nothing. W1 is the Wasserstein distance of a measured factor in standard deviations of the test volumes. The
held-out loss is the training loss on test latents, over times and noise that are the same for all networks.

Finished runs and measurements are kept in --runs and never repeated: a killed benchmark goes on where it was, and parts
can be run one by one. Each call writes what is there by then to patch_volume_ablations.json and .md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablation_measures import describe_set, generate, held_out_losses, reconstruct, reconstruction_cases
from ablation_runs import (
    AUTOENCODER_RUN,
    DECODERS,
    DIFFUSION_RUN,
    GENERATORS,
    PARTS,
    PATCH,
    RECONSTRUCTIONS,
    SLAB,
    TRAININGS,
    WHOLE,
    Grid,
    Training,
)
from ablation_tables import MEAN_VOLUME, document, findings
from record import RESULTS, environment, write_result

from voxdiff.data.anatomy import BRAIN_FOV_MM
from voxdiff.metrics.anchors import mean_image
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.pipelines.pipeline_patch_volume_ldm import PatchVolumeLDMPipeline
from voxdiff.training.class_sources import cohort_source
from voxdiff.volumes import atomic_path

SCRIPTS = Path(__file__).parents[1] / "training_scripts"
SPACING = (BRAIN_FOV_MM / max(WHOLE),) * 3


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.runs, args.cache = args.runs.resolve(), args.cache.resolve()
    described = environment()
    for grid in (WHOLE, SLAB):
        measure_real(grid, args)
    for part in args.parts:
        for seed in range(args.seeds):
            for name in PARTS[part]:
                measure(name, seed, args)
            write_findings(args, described)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="keeps runs and measurements")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--patch-steps", type=int, default=600)
    parser.add_argument("--volume-steps", type=int, default=120)
    parser.add_argument("--diffusion-steps", type=int, default=600)
    parser.add_argument("--subjects", type=int, default=300, help="trained on")
    parser.add_argument("--volumes", type=int, default=100, help="measured: test subjects, and generated ones")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def real_volumes(split: str, grid: Grid, args: argparse.Namespace) -> list[torch.Tensor]:
    """Volumes ``(1, x, y, z)`` in [0, 1], prepared as for training."""
    source = cohort_source("mr", grid, args.cache, num_subjects=args.volumes, split=split, scalar_names=())
    return [(source.volume(index) + 1) / 2 for index in range(len(source))]


def measure(name: str, seed: int, args: argparse.Namespace) -> None:
    """Measure a row of a part, and before that do whatever training it needs, unless it was done."""
    run = {**DECODERS, **RECONSTRUCTIONS, **GENERATORS}[name][0]
    train(run, seed, args)
    if name in DECODERS:
        compute = partial(measure_decoder, *DECODERS[name], seed, args)
    elif name in RECONSTRUCTIONS:
        compute = partial(measure_reconstructions, run, seed, args)
    else:
        compute = partial(measure_generator, run, GENERATORS[name][1], seed, args)
    kept(f"{stem(name)}-{seed}", args, compute)


def stem(name: str) -> str:
    """How the files of a row's measurements begin."""
    if name in DECODERS:
        return "-".join(DECODERS[name])
    run, grid = (RECONSTRUCTIONS | GENERATORS)[name]
    return f"{run}-{'x'.join(map(str, grid))}"


def train(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Run a training script unless that was done; returns the folder of its result.

    Raises:
        ValueError: If it was done with other options.
        RuntimeError: If the script fails.
    """
    training = TRAININGS[name]
    folder = args.runs / f"{name}-{seed}"
    steps = round(sum(times * getattr(args, kind) for kind, times in training.steps.items()))
    options = [*training.options.split(), "--seed", str(seed), "--max_train_steps", str(steps)]
    options += ["--cohort", "mr", "--num_subjects", str(args.subjects), "--cache_dir", str(args.cache)]
    if training.is_diffusion:
        latents = args.runs / f"latents-{training.base}-{seed}"
        options += [*DIFFUSION_RUN.split(), "--vae", base_of(training, seed, args), "--latents_dir", str(latents)]
    else:
        options += AUTOENCODER_RUN.split()
        if training.base is not None:
            options += ["--pretrained_model_name_or_path", base_of(training, seed, args)]
    record = folder / "finished.json"
    if record.exists():
        if read_json(record)["options"] != options:
            raise ValueError(f"{folder} was trained with other options, see its finished.json; give other --runs.")
        return folder
    started, before = time.perf_counter(), children_seconds()
    run_script(training.is_diffusion, [*options, "--output_dir", str(folder)], args)
    done = {"options": options, "seconds": time.perf_counter() - started}
    write_json(record, {**done, "cpu_seconds": children_seconds() - before})
    return folder


def base_of(training: Training, seed: int, args: argparse.Namespace) -> str:
    assert training.base is not None
    return str(train(training.base, seed, args))


def run_script(is_diffusion: bool, options: list[str], args: argparse.Namespace) -> None:
    script = SCRIPTS / f"train_patch_volume_{'ldm' if is_diffusion else 'autoencoder'}.py"
    resumed = ["--checkpointing_steps", "200", "--checkpoints_total_limit", "1", "--resume_from_checkpoint", "latest"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "ACCELERATE_USE_CPU": "true"}
    print(time.strftime("%H:%M:%S"), script.name, *options[-2:], flush=True)
    run = subprocess.run([sys.executable, script, *options, *resumed], env=surroundings, check=False)
    if run.returncode:
        raise RuntimeError(f"{script.name} ended with {run.returncode}; its own error stands above.")


def measure_decoder(run: str, decoder: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    vae = AutoencoderPatchVolume.from_pretrained(args.runs / f"{run}-{seed}")
    return {"cases": reconstruction_cases(vae, real_volumes("test", WHOLE, args), decoder=decoder, patch=PATCH)}


def measure_reconstructions(run: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Of training subjects, since the set is compared with the test subjects."""
    vae = AutoencoderPatchVolume.from_pretrained(args.runs / f"{run}-{seed}")
    volumes = [reconstruct(vae, volume) for volume in real_volumes("train", WHOLE, args)]
    return describe_set(volumes, SPACING, with_factors=True)


def measure_generator(run: str, grid: Grid, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    pipeline = PatchVolumeLDMPipeline.from_pretrained(args.runs / f"{run}-{seed}")
    losses = held_out_losses(pipeline, real_volumes("test", grid, args))
    volumes = generate(pipeline, args.volumes, grid=grid, steps=args.sampling_steps)
    millions = sum(parameter.numel() for parameter in pipeline.unet.parameters()) / 1e6
    return {"parameters_m": millions, "losses": losses, **describe_set(volumes, SPACING, with_factors=grid == WHOLE)}


def measure_real(grid: Grid, args: argparse.Namespace) -> None:
    """Features and factors of test subjects and of as many training subjects, whose distance is the floor; anchors."""
    name = "x".join(map(str, grid))

    def compute() -> dict[str, Any]:
        sets = {split: real_volumes(split, grid, args) for split in ("test", "train")}
        return {name: describe_set(volumes, SPACING, with_factors=grid == WHOLE) for name, volumes in sets.items()}

    def compute_anchors() -> dict[str, Any]:
        volumes = real_volumes("train", grid, args)
        repeated = {MEAN_VOLUME: mean_image(volumes), "one volume repeated": volumes[0]}
        described = {name: describe_set([volume], SPACING, with_factors=False) for name, volume in repeated.items()}
        return {name: {"features": found["features"] * len(volumes)} for name, found in described.items()}

    kept(f"real-{name}", args, compute)
    kept(f"anchors-{name}", args, compute_anchors)


def kept(name: str, args: argparse.Namespace, compute: Callable[[], dict[str, Any]]) -> None:
    """Make and write a measurement that is not there yet.

    Raises:
        ValueError: If it is there, made otherwise.
    """
    path = measurement(name, args)
    protocol = {"volumes": args.volumes, "sampling_steps": args.sampling_steps}
    if path.exists():
        found = read_json(path)["protocol"]
        if found != protocol:
            raise ValueError(f"{path} was measured with {found}, this call has {protocol}; give other --runs.")
        return
    print(time.strftime("%H:%M:%S"), "measuring", name, flush=True)
    started = time.process_time()
    write_json(path, {"protocol": protocol, **compute(), "cpu_seconds": time.process_time() - started})


def write_findings(args: argparse.Namespace, described: dict[str, Any]) -> None:
    """Summarise all measurements that are there."""
    rows = [name for part in PARTS.values() for name in part]
    measured: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in rows}
    for name in measured:
        for seed in range(args.seeds):
            if (path := measurement(f"{stem(name)}-{seed}", args)).exists():
                measured[name][seed] = read_json(path)
    grids = {grid: "x".join(map(str, grid)) for grid in (WHOLE, SLAB)}
    reals = {
        grid: {**read_json(path), "anchors": read_json(measurement(f"anchors-{name}", args))}
        for grid, name in grids.items()
        if (path := measurement(f"real-{name}", args)).exists() and measurement(f"anchors-{name}", args).exists()
    }
    protocol = {key: value for key, value in vars(args).items() if isinstance(value, int)}
    result = {"what": (__doc__ or "").splitlines()[0], "protocol": protocol, "cpu_minutes": cpu_minutes(args)}
    result |= {"parts": findings({name: seeds for name, seeds in measured.items() if seeds}, reals)}
    result |= {"environment": described, "load_average_at_end": environment()["load_average"]}
    path = write_result("patch_volume_ablations", result, args.out)
    path.with_suffix(".md").write_text(document(result), encoding="utf-8")


def measurement(name: str, args: argparse.Namespace) -> Path:
    return args.runs / "measured" / f"{name}.json"


def cpu_minutes(args: argparse.Namespace) -> float:
    """Of all finished runs and measurements; attempts that were killed are not in it."""
    records = [*args.runs.glob("*/finished.json"), *(args.runs / "measured").glob("*.json")]
    return round(sum(read_json(path)["cpu_seconds"] for path in records) / 60, 1)


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
