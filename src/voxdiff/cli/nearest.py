"""`voxdiff nearest`: the most similar real volume of every synthetic one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from voxdiff.cli.console import one_sentence_errors, progress_bar

if TYPE_CHECKING:
    from voxdiff.metrics.nearest import Matches
    from voxdiff.metrics.volume_sets import VolumeSet

STAGES = {"reading": "Reading volumes", "choosing": "Comparing coarse scales", "scoring": "Scoring candidates"}


def nearest(
    synthetic: Annotated[Path, typer.Option(help="Folder of synthetic volumes (.nii.gz).")],
    real: Annotated[Path, typer.Option(help="Folder of real volumes, such as the training set.")],
    out: Annotated[Path, typer.Option(help="Folder for nearest.csv and nearest.json; a search begun is continued.")],
    candidates: Annotated[
        int, typer.Option(help="Real volumes scored in full for each synthetic one; 0: all of them.")
    ] = 32,
    top: Annotated[int, typer.Option(help="How many nearest real volumes are listed for each synthetic one.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")] = None,
    scales: Annotated[int, typer.Option(help="Scales of MS-SSIM, 1 to 5.")] = 4,
    kernel_size: Annotated[int, typer.Option(help="Voxels a side of its Gaussian window.")] = 5,
    sigma: Annotated[float, typer.Option(help="Width of its window in voxels.")] = 1.0,
    pattern: Annotated[str, typer.Option(help="Which files of both folders, such as '*_t1.nii.gz'.")] = "**/*",
    unit: Annotated[str | None, typer.Option(help="HU or a.u., where the files do not say.")] = None,
    size: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Bring all volumes to this grid x y z, where they differ.")
    ] = None,
    memory: Annotated[float, typer.Option(help="GiB for synthetic volumes held at once.")] = 4.0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps prepared volumes, so that each file is prepared once.")
    ] = None,
) -> None:
    """Find the nearest real volume of every synthetic one by MS-SSIM."""
    from voxdiff.metrics.nearest import nearest_by_ms_ssim
    from voxdiff.metrics.set_checks import require_same_grid, require_same_scale
    from voxdiff.metrics.volume_sets import VolumeSet

    console = Console(stderr=True)
    settings: dict[str, Any] = {"data_range": 1.0, "scales": scales, "kernel_size": kernel_size, "sigma": sigma}
    with one_sentence_errors(console):
        check_arguments(out, candidates, top)
        chosen_device = check_device(device)
        options: dict[str, Any] = {"pattern": pattern, "unit": unit, "cache_dir": cache}
        real_set = VolumeSet.open(real, size=size, **options)
        synthetic_set = VolumeSet.open(synthetic, processor=real_set.processor, **options)
        if top > len(real_set):
            raise ValueError(f"--top is {top} and {real} holds {len(real_set)} volume(s); ask for no more than those.")
        require_same_grid(synthetic_set, real_set)
        require_same_scale([synthetic_set], real_set)
        with progress_bar(console) as progress:
            matches = nearest_by_ms_ssim(
                synthetic_set,
                real_set,
                **settings,
                candidates=candidates or None,
                device=chosen_device,
                memory_gib=memory,
                cache_dir=out / "search",
                progress=show_stages(progress),
            )
        table = write_table(out, matches, synthetic_set, real_set, top)
        write_record(out, settings, matches, synthetic_set, real_set, top, chosen_device)
    closest = int(matches.similarity.argmax())
    Console().print(
        f"[bold green]Written:[/] {escape(str(table))}\nMS-SSIM with the nearest of {len(real_set)} real volumes: "
        f"median {matches.similarity.median():.4f}, highest {matches.similarity[closest]:.4f} "
        f"({escape(synthetic_set.names[closest])} and {escape(real_set.names[int(matches.index[closest])])})",
        soft_wrap=True,
    )


def show_stages(progress: Progress) -> Callable[[str, int, int], None]:
    """A callback that gives each stage a bar of its own once it begins."""
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(STAGES[stage], total=total)
        progress.update(tasks[stage], completed=done)

    return show


def check_arguments(out: Path, candidates: int, top: int) -> None:
    """Raises ValueError for what needs no volume to be read."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder.")
    if candidates < 0 or top < 1 or 0 < candidates < top:
        raise ValueError(
            f"--candidates is {candidates} and --top is {top}; --top takes 1 to the number of candidates, and "
            "--candidates 0 means all real volumes."
        )


def check_device(device: str | None) -> str:
    """The device asked for, or a GPU if there is one; raises ValueError if this machine does not offer it."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"--device is {device!r}, which this machine does not offer ({reason}).") from error
    return device


def write_table(out: Path, matches: "Matches", synthetic: "VolumeSet", real: "VolumeSet", top: int) -> Path:
    """`nearest.csv`: a row for each synthetic volume and rank."""
    import csv

    from voxdiff.volumes import atomic_path

    synthetic_files, real_files = ([str(path.relative_to(s.folder)) for path in s.paths] for s in (synthetic, real))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "nearest.csv"
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["synthetic_file", "rank", "real_file", "ms_ssim"])
        for place, name in enumerate(synthetic_files):
            for rank in range(top):
                similarity = float(matches.candidate_similarities[place, rank])
                writer.writerow([name, rank + 1, real_files[matches.candidates[place, rank]], f"{similarity:.6f}"])
    return path


def write_record(
    out: Path,
    settings: dict[str, Any],
    matches: "Matches",
    synthetic: "VolumeSet",
    real: "VolumeSet",
    top: int,
    device: str,
) -> None:
    """`nearest.json`: what the numbers in the table belong to."""
    import json
    from importlib.metadata import version

    from voxdiff.metrics.nearest import COARSE_SCALES
    from voxdiff.volumes import atomic_path

    record = {
        "ms_ssim": settings,
        "candidates": matches.candidates.shape[1],
        "all_real_volumes_scored": matches.candidates.shape[1] == len(real),
        "coarse_scales": COARSE_SCALES,
        "top": top,
        "device": device,
        "processor": real.processor.to_dict(),
        "sets": {
            kind: {"folder": str(volumes.folder), "volumes": len(volumes), "fingerprint": volumes.fingerprint}
            for kind, volumes in (("synthetic", synthetic), ("real", real))
        },
        "versions": {name: version(name) for name in ("voxdiff", "torch", "numpy")},
    }
    with atomic_path(out / "nearest.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
