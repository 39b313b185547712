"""WDM's official FID script and ours on the same folders, with the same seeded weights in the extractor of both.

    python benchmarks/bench_official_fid.py --official CHECKOUT_OF_WDM_3D

The official `eval/fid.py` runs as it is, started as a program. Patched from outside, because it could not run here
otherwise: `.cuda()` keeps tensors where they are, and its loader reads real volumes as it reads fake ones (its own way
wants 240 x 240 x 155 voxels). It runs twice: as it is, with 1000 rows for features however many files there are, and with
as many rows as files. Rows that no file fills are whatever memory held; the script's own functions, called with those
rows set to 0, show that they enter the result.

real   simulated T1w brains, 64³, in [0, 1]
fake   other subjects of the same simulator, blurred by a Gaussian of 1 voxel

Writes official_fid.json and official_fid.md below --out. The official repository is imported, never copied.
"""

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from record import RESULTS, environment, markdown_table, write_result
from safetensors.torch import save_file

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.fidelity import frechet_distance

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
from seeded_weights import seeded_input, seeded_state_dict

SHORTCUTS = {10: "B", 18: "A", 50: "B"}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    started = environment()
    sys.path[:0] = [str(args.official / "eval"), str(args.official)]
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(Path(scratch), args)
    protocol = {"num": args.num, "size": 64, "threads": args.threads, "weights": "tests/golden/seeded_weights.py"}
    result = {"what": "FID beside WDM's official script", "protocol": protocol, "results": results}
    result |= {"environment": started, "load_average_at_end": environment()["load_average"]}
    text = report(results, args.num)
    print(text)
    (args.out / "official_fid.md").write_text(text, encoding="utf-8")
    print(write_result("official_fid", result, args.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="checkout of pfriedri/wdm-3d")
    parser.add_argument("--num", type=int, default=16, help="volumes of either set")
    parser.add_argument("--cache", type=Path, help="cache of the cohort at 64³")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not (args.official / "eval" / "fid.py").is_file():
        parser.error(f"There is no eval/fid.py in {args.official}; give a checkout of pfriedri/wdm-3d.")
    args.official = args.official.resolve()
    return args


def compare(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every number of the report."""
    results: dict[str, Any] = {"features_by_depth": compare_networks()}
    write_volumes(scratch, args)
    state = seeded_state_dict(official_shapes(50))
    torch.save({"state_dict": state}, scratch / "weights.pth")
    save_file(state, scratch / "weights.safetensors")
    as_it_is, exact = run_official(scratch, args), run_official(scratch, args, rows=args.num)
    unfilled = {which: as_it_is[which][args.num :] for which in ("real", "fake")}
    left = {which: int((np.abs(rows).max(1) > 0).sum()) for which, rows in unfilled.items()}
    for rows in unfilled.values():
        rows[:] = 0
    zeroed = official_fid(as_it_is)
    begun = time.perf_counter()
    ours = [our_features(scratch, which) for which in ("real", "fake")]
    theirs = [exact["real"], exact["fake"]]
    results["seconds"] = {
        "official, 1000 rows": as_it_is["seconds"],
        "official, rows = files": exact["seconds"],
        "our features": round(time.perf_counter() - begun, 1),
    }
    results["features_max_difference"] = max(
        float(np.abs(sort_rows(a) - sort_rows(b)).max()) for a, b in zip(ours, theirs, strict=True)
    )
    results["features_mean"] = float(np.mean(ours))
    results["fid"] = {
        "official as it is (1000 rows)": as_it_is["fid"],
        "official, unfilled rows set to 0": zeroed,
        "official, rows = files": exact["fid"],
        "ours": frechet_distance(*ours),
        "ours, on the official features": frechet_distance(*theirs),
        "ours, one half of the real set against the other": frechet_distance(ours[0][::2], ours[0][1::2]),
    }
    results["unfilled_rows"] = 1000 - args.num
    results["unfilled_rows_not_zero"] = left
    return results


def compare_networks() -> dict[str, float]:
    """Largest difference of features, official network against ours, for every depth."""
    from models import resnet

    differences = {}
    for depth in SHORTCUTS:
        network = getattr(resnet, f"resnet{depth}")(**official_arguments(depth)).eval()
        state = seeded_state_dict(official_shapes(depth))
        network.load_state_dict(state, strict=False)  # the batch counters are not seeded
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            save_file(state, Path(folder) / "weights.safetensors")
            ours = load_extractor(f"medicalnet-resnet{depth}:unit={folder}/weights.safetensors")
            volume = seeded_input("volume", (1, 1, 40, 32, 48))
            differences[str(depth)] = float((ours(volume).values - network(volume)).abs().max())
    return differences


def official_arguments(depth: int) -> dict[str, Any]:
    sizes = dict.fromkeys(("sample_input_D", "sample_input_H", "sample_input_W"), 64)
    return {**sizes, "num_seg_classes": 2, "shortcut_type": SHORTCUTS[depth], "no_cuda": True}


def official_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    from models import resnet

    with torch.device("meta"):
        state = getattr(resnet, f"resnet{depth}")(**official_arguments(depth)).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def write_volumes(scratch: Path, args: argparse.Namespace) -> None:
    """Folders real and fake of `.nii.gz` files."""
    caching = {"cache_dir": args.cache, "cache": False} if args.cache else {}
    cohort = CohortDataset(2 * args.num, split="train", size=64, **caching)
    for place in range(2 * args.num):
        which = "real" if place < args.num else "fake"
        volume = cohort[place]["t1"]
        volume = volume if which == "real" else blur(volume)
        (scratch / which).mkdir(exist_ok=True)
        path = scratch / which / f"{place:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume[0].numpy(), np.diag([3.25, 3.25, 3.25, 1])), path)


def blur(volume: torch.Tensor) -> torch.Tensor:
    window = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / 2)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 9
        kernel = (window / window.sum()).reshape(shape)
        volume = torch.nn.functional.conv3d(volume[None], kernel, padding=[4 * (n == 9) for n in shape[2:]])[0]
    return volume


def run_official(scratch: Path, args: argparse.Namespace, *, rows: int | None = None) -> dict[str, Any]:
    """The official script as a program: its FID, its features and its functions.

    Args:
        scratch: folder with the volumes and the weights.
        args: of this benchmark.
        rows: of its feature array; None leaves the script's 1000.
    """
    import guided_diffusion.bratsloader as loader

    original = loader.BRATSVolumes

    def read_both_alike(directory, normalize, mode, img_size):
        return original(directory, normalize=normalize, mode="fake", img_size=img_size)

    command = ["fid.py", "--dataset=brats", "--img_size=64", "--no_cuda", f"--path_to_activations={scratch}"]
    command += [f"--data_root_{which}={scratch / which}" for which in ("real", "fake")]
    command += [f"--pretrain_path={scratch / 'weights.pth'}"]
    begun = time.perf_counter()
    with (
        patch.object(torch.Tensor, "cuda", lambda self, *rest, **settings: self),
        patch.object(loader, "BRATSVolumes", read_both_alike),
        patch.object(argparse, "Namespace", _pinned_rows(rows)),
        patch.object(sys, "argv", command),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        script = runpy.run_path(str(args.official / "eval" / "fid.py"), run_name="__main__")
    print(f"official, {rows or 1000} rows: {script['fid']:.6g}", flush=True)
    return {
        "fid": float(np.real(script["fid"])),
        "seconds": round(time.perf_counter() - begun, 1),
        "real": script["activations_real"],
        "fake": script["activations_fake"],
        "script": script,
    }


def official_fid(run: dict[str, Any]) -> float:
    """The script's own statistics and distance on a run's features as they are now."""
    moments = [run["script"]["process_feature_vecs"](run[which]) for which in ("real", "fake")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(np.real(run["script"]["calculate_frechet_distance"](*moments[0], *moments[1])))


def _pinned_rows(rows: int | None) -> type[argparse.Namespace]:
    """What argparse makes, on which the script's own `sets.num_samples = 1000` has no effect."""
    if rows is None:
        return argparse.Namespace

    class Pinned(argparse.Namespace):
        num_samples = property(lambda self: rows, lambda self, value: None)

    return Pinned


def our_features(scratch: Path, which: str) -> np.ndarray:
    """Features (number, 2048) of a folder, in the way of WDM: values in [0, 1], not standardised."""
    extractor = load_extractor(f"medicalnet-resnet50:unit={scratch / 'weights.safetensors'}")
    volumes = [nibabel.load(path).get_fdata(dtype=np.float32) for path in sorted((scratch / which).iterdir())]
    return np.concatenate([extractor(torch.from_numpy(volume)[None, None]).values.numpy() for volume in volumes])


def sort_rows(features: np.ndarray) -> np.ndarray:
    """The official loader reads files in the order of the file system."""
    return features[np.argsort(features[:, np.argmax(features.var(0))])]


def report(results: dict[str, Any], num: int) -> str:
    rows = [[name, f"{value:.6g}"] for name, value in results["fid"].items()]
    depths = ", ".join(f"{value:.1e} (ResNet-{depth})" for depth, value in results["features_by_depth"].items())
    return "\n".join(
        [
            f"FID of {num} real and {num} blurred volumes at 64³, the same seeded weights on both sides.",
            "",
            markdown_table(["script", "FID"], rows),
            "",
            f"Features: largest difference {results['features_max_difference']:.1e} (mean {results['features_mean']:.3g})"
            f" over both folders; over the networks on one seeded volume {depths}.",
            "",
            f"The script keeps 1000 rows for features; {results['unfilled_rows']} of them are never written when there "
            f"are {num} files, and enter mean and covariance with whatever np.empty returned "
            f"({results['unfilled_rows_not_zero']['real']} rows of the real and "
            f"{results['unfilled_rows_not_zero']['fake']} of the fake array were not 0 in the run as it is).",
            "",
            "The official loader reads real and synthetic volumes in different ways; for this comparison it was made to read "
            "both alike.",
            "",
        ]
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
