"""`voxdiff interpolate`: thinner, further or repaired slices of a scan."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors
from voxdiff.cli.generate import load_pipeline
from voxdiff.cli.resampling_options import Device, Dtype, Scheduler


def interpolate(
    scan: Annotated[Path, typer.Argument(help="The scan, a NIfTI file.")],
    out: Annotated[Path, typer.Argument(help="Folder for the volumes, their records and pictures.")],
    model: Annotated[
        str, typer.Option(help="A slice-conditioned model: a shipped one, a folder, or a Hub repository.")
    ],
    factor: Annotated[int | None, typer.Option(help="How many times denser the slices shall lie, such as 2.")] = None,
    slice_spacing: Annotated[float | None, typer.Option(help="The same as a spacing in mm.")] = None,
    extend: Annotated[
        tuple[int, int] | None, typer.Option(help="Slices to add below and above, at the new spacing.")
    ] = None,
    corrupted: Annotated[
        str | None,
        typer.Option(help="Slices of the scan to make anew, such as 3,4; from low to high in the model's orientation."),
    ] = None,
    known_indices: Annotated[
        str | None, typer.Option(help="The only slices of the scan to use, such as 0,20,40; the others are made anew.")
    ] = None,
    slice_axis: Annotated[
        int | None, typer.Option(help="0 sagittal, 1 coronal, 2 axial; default: what the model was trained on.")
    ] = None,
    first_position: Annotated[
        float | None,
        typer.Option(help="Where in the model's volumes, in its slices, the first slice lies; default: centred."),
    ] = None,
    intensity_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Values of the scan that the ends of the model's range stand for, where its rule fixes none."
        ),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of the scan, where a CT model asks for it: HU.")] = None,
    background: Annotated[float | None, typer.Option(help="Value of the scan outside the patient.")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="hierarchical, autoregressive or anchored; default: the model's own.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most stages that share a call of the network; fewer need less memory.")
    ] = None,
    num_volumes: Annotated[int, typer.Option(help="How many answers; volume i is drawn with seed + i.")] = 1,
    steps: Annotated[int, typer.Option(help="Solver steps a stage.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first volume.")] = 0,
    scheduler: Scheduler = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Generate slices between, beyond or instead of those of a scan, which come back as they were."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        if num_volumes < 1:
            raise ValueError(f"--num-volumes is {num_volumes}; give a whole number of at least 1.")
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; give a folder.")
        pipe = _load_slice_conditioned_pipeline(model, scheduler, device, dtype)
        request = {
            "volume": scan,
            "factor": factor,
            "slice_spacing": slice_spacing,
            "extend": extend,
            "corrupted": _parse_slices("corrupted", corrupted),
            "known_indices": _parse_slices("known-indices", known_indices),
            "slice_axis": slice_axis,
            "first_position": first_position,
            "intensity_range": intensity_range,
            "unit": unit,
            "background": background,
            "scheme": scheme,
            "max_batch": max_batch,
        }
        paths = []
        with console.status("Sampling"):
            for index in range(num_volumes):
                paths.append(_sample_and_save(pipe, request, out, index, seed=seed + index, steps=steps))
    for path in paths:
        Console().print(f"[bold green]Written:[/] {escape(str(path))}", soft_wrap=True)


def _load_slice_conditioned_pipeline(model: str, scheduler: str | None, device: str | None, dtype: str) -> Any:
    from voxdiff.pipelines.pipeline_slice_conditioned import SliceConditionedPipeline

    pipe = load_pipeline(model, scheduler, device, dtype)
    if not isinstance(pipe, SliceConditionedPipeline):
        raise ValueError(f"{model} is a {type(pipe).__name__}; give a SliceConditionedPipeline.")
    return pipe


def _sample_and_save(pipe: Any, request: dict[str, Any], out: Path, index: int, *, seed: int, steps: int) -> Path:
    import torch

    from voxdiff.volumes import save_volumes

    output = pipe(**request, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed))
    stem = request["volume"].name.removesuffix(".gz").removesuffix(".nii")
    (path,) = save_volumes(output, out, prefix=stem, first_index=index, png=True)
    return path


def _parse_slices(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{option} is {text!r}; write whole numbers with commas, such as 3,4.") from error
