"""Copy a trained pipeline in 16 bit, with its log: what a shipped model consists of, before its card is written.

    python benchmarks/export_pipeline.py runs/informed-slice-brain-64/volume model_cards/informed-slice-brain-64
    python benchmarks/export_pipeline.py runs/informed-slice-brain-64/volume OUT/informed-slice.tar

To a folder, or to one tar file for a machine that gives back few files.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

import torch

from voxdiff import Pipeline
from voxdiff.volumes import atomic_path

BESIDE = ("training_log.jsonl", "pipeline.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished training")
    parser.add_argument("out", type=Path, help="folder, or a file that ends in .tar")
    args = parser.parse_args()
    if args.out.suffix != ".tar":
        export(args.run, args.out)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, atomic_path(args.out) as temporary:
        export(args.run, Path(folder))
        with tarfile.open(temporary, "w") as archive:
            archive.add(folder, arcname=args.out.stem)


def export(run: Path, out: Path) -> None:
    """Save the pipeline in float16, and copy what lies beside it."""
    pipe = Pipeline.from_pretrained(run)
    pipe.to(torch.float16)
    pipe.save_pretrained(out)
    for config in out.rglob("*.json"):
        leave_out_origin(config)
    for name in BESIDE:
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{run}: {size / 2**20:.2f} MiB")


def leave_out_origin(config: Path) -> None:
    """Drop the path on this machine that the part was loaded from."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    with atomic_path(config) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
