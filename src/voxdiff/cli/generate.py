"""`voxdiff generate`: volumes from a model, as NIfTI files with records and pictures."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from voxdiff.cli.console import one_sentence_errors, progress_bar

DTYPES = ("float32", "bfloat16", "float16")
_OPTIONS = {
    "condition_volumes": "--condition",
    "class_labels": "--class-label",
    "scalars": "--scalar",
    "size": "--size",
    "guidance_scale": "--guidance-scale",
}


def generate(
    model: Annotated[
        str, typer.Argument(help="A shipped model, a pipeline folder, or a Hub repository (organisation/name).")
    ] = "wdm-brain-64",
    out: Annotated[Path, typer.Option(help="Folder for the volumes, their records and pictures.")] = Path("outputs"),
    num_volumes: Annotated[int, typer.Option(help="How many volumes; volume i is drawn with seed + i.")] = 1,
    steps: Annotated[int, typer.Option(help="Solver steps a volume.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first volume.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++, unipc, deis, euler or heun; default: the model's own.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the network: float32, bfloat16 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Volumes sampled at once; does not change them.")] = 1,
    condition: Annotated[
        list[str] | None, typer.Option(help="Translation models: NAME=PATH of a condition volume; repeat for each.")
    ] = None,
    class_label: Annotated[
        str | None, typer.Option(help="Class-conditional models: name or label of the class.")
    ] = None,
    scalar: Annotated[
        list[str] | None, typer.Option(help="Models with scalar conditions: NAME=VALUE; repeat for each.")
    ] = None,
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Another grid than the model's or the class's own: X Y Z voxels."),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance, of models trained with dropped conditions.")
    ] = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write DICOM series marked as synthetic data.")] = False,
) -> None:
    """Generate volumes and save them as NIfTI, each with its provenance record and a picture."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        if num_volumes < 1 or batch_size < 1:
            raise ValueError("--num-volumes and --batch-size take whole numbers of at least 1.")
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file; give a folder.")
        pipe = load_pipeline(model, scheduler, device, dtype)
        refuse_mask_models(pipe)
        arguments = call_arguments(
            pipe,
            condition_volumes=parse_conditions(condition or []),
            class_labels=class_label,
            scalars=parse_scalars(scalar or []),
            size=size,
            guidance_scale=guidance_scale,
        )
        with progress_bar(console) as progress:
            task = progress.add_task(f"Sampling {num_volumes} volume(s)", total=num_volumes * steps)
            saved = []
            for first in range(0, num_volumes, batch_size):
                seeds = range(seed + first, seed + min(first + batch_size, num_volumes))
                saved += sample_and_save(pipe, seeds, steps, arguments, out, first, dicom, progress, task)
    Console().print(f"[bold green]Written:[/] {len(saved)} volume(s) to {escape(str(out))}", soft_wrap=True)
    for path in saved:
        picture = path.with_name(path.name.removesuffix(".nii.gz") + ".png")
        Console().print(f"  {escape(str(path))}   picture: {escape(str(picture))}", soft_wrap=True)


def load_pipeline(model: str, scheduler: str | None, device: str | None, dtype: str) -> Any:
    """The pipeline on its device, with another scheduler if one is named."""
    import torch

    from voxdiff.hub.registry import resolve_model
    from voxdiff.pipelines.auto import Pipeline
    from voxdiff.schedulers import swap_scheduler

    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = Pipeline.from_pretrained(resolve_model(model), dtype=getattr(torch, dtype))
    if scheduler is not None:
        pipe.scheduler = swap_scheduler(pipe.scheduler, scheduler)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {device!r}, which this machine does not offer ({error}).") from error


def refuse_mask_models(pipe: Any) -> None:
    """Raise ValueError if the pipeline makes a volume of a mask only."""
    if "mask" in inspect.signature(pipe.__call__).parameters:
        raise ValueError(
            f"{type(pipe).__name__} makes volumes of masks, which this command does not take; use `voxdiff enhance` or "
            "`voxdiff harmonize`, or call the pipeline in Python."
        )


def parse_conditions(pairs: list[str]) -> dict[str, Path] | None:
    """``["t1c=a.nii.gz", ...]`` to name → path."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--condition is {pair!r}; write NAME=PATH, such as t1c=scan.nii.gz.")
    return {name: Path(path) for name, path in (pair.split("=", 1) for pair in pairs)} or None


def parse_scalars(pairs: list[str]) -> dict[str, float] | None:
    """``["age=63.5", ...]`` to name → number."""
    scalars = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            scalars[name] = float(number)
        except ValueError as error:
            raise ValueError(f"--scalar is {pair!r}; write NAME=VALUE, such as age=63.5.") from error
    return scalars or None


def call_arguments(pipe: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments that were given, all of which the pipeline must take."""
    given = {name: value for name, value in arguments.items() if value is not None}
    of_no_use = [_OPTIONS[name] for name in given if name not in inspect.signature(pipe.__call__).parameters]
    if of_no_use:
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(of_no_use)}; leave that out.")
    return given


def sample_and_save(
    pipe: Any,
    seeds: range,
    steps: int,
    arguments: dict[str, Any],
    out: Path,
    first: int,
    dicom: bool,
    progress: Progress,
    task: Any,
) -> list[Path]:
    """Sample one batch, each volume from its own seed, and write it."""
    import torch

    from voxdiff.volumes import save_volumes

    def advance(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        progress.update(task, advance=len(seeds) * steps / (pipeline.num_timesteps * pipeline.num_loops))
        return tensors

    output = pipe(
        **arguments,
        batch_size=len(seeds),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=advance,
    )
    return save_volumes(output, out, png=True, dicom=dicom, first_index=first)
