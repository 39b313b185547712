"""Copy the latest weights of a training run, raw and averaged, in 16 bit, with log and pictures, to a flat folder.

    python benchmarks/export_checkpoint.py runs/wdm-brain-64 OUT

Flat and small because a machine that is only lent may give back few and small files: at most 8, each under 16 MiB.
Writes unet.safetensors, unet_ema.safetensors, config.json, training_state.json, training_log.jsonl and up to two of the
latest validation pictures.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from voxdiff.training.checkpoints import list_checkpoints

LIMIT_MB = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    checkpoints = list_checkpoints(args.run)
    if not checkpoints:
        raise SystemExit(f"{args.run} has no complete checkpoint yet.")
    latest = checkpoints[-1]
    args.out.mkdir(parents=True, exist_ok=True)
    written = [export_weights(latest / name, args.out / f"{name}.safetensors") for name in ("unet", "unet_ema")]
    written += [copy(latest / "unet_ema" / "config.json", args.out), copy(latest / "training_state.json", args.out)]
    written += [copy(args.run / "training_log.jsonl", args.out)]
    pictures = sorted(args.run.glob("validation/step-*/*.png"))[-2:]
    written += [copy(path, args.out, f"{path.parent.name}-{path.name}") for path in pictures]
    step = json.loads((latest / "training_state.json").read_text(encoding="utf-8"))["step"]
    print(f"step {step}: " + ", ".join(f"{path.name} {path.stat().st_size / 2**20:.2f} MiB" for path in written))
    too_large = [path.name for path in written if path.stat().st_size >= LIMIT_MB * 2**20]
    if too_large:
        raise SystemExit(f"Over {LIMIT_MB} MiB: {', '.join(too_large)}; train a smaller network.")


def export_weights(folder: Path, target: Path) -> Path:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise SystemExit(f"{folder} holds non-finite weights.")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, target, metadata={"format": "pt"})
    return target


def copy(source: Path, folder: Path, name: str = "") -> Path:
    return Path(shutil.copyfile(source, folder / (name or source.name)))


if __name__ == "__main__":
    main()
