"""`voxdiff counterfactual`: one subject with its own and with an edited mask."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors
from voxdiff.cli.resampling_options import Device, Dtype, Model, Scheduler, Steps, Unit, load_informed_slice_pipeline


def counterfactual(
    model: Model,
    image: Annotated[Path, typer.Argument(help="The subject's image.")],
    mask: Annotated[Path, typer.Argument(help="Its mask.")],
    edited_mask: Annotated[Path, typer.Argument(help="The mask after the edit, on the same grid.")],
    out: Annotated[Path, typer.Option(help="Folder for both volumes, their difference and a picture.")] = Path(
        "counterfactual"
    ),
    tissue: Annotated[
        Path | None, typer.Option(help="Its tissue map; gives the brain around tumour labels a label of its own.")
    ] = None,
    slice_index: Annotated[
        int | None, typer.Option(help="Informed slice on the model's grid; default: one that the edit is not near.")
    ] = None,
    unit: Unit = None,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Of the noise, which both volumes share.")] = 0,
    scheduler: Scheduler = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Make a subject with its own and with an edited mask, and show what changed."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        from voxdiff.workflows.counterfactual import counterfactual as run
        from voxdiff.workflows.masked_cases import MaskedCase

        pipe = load_informed_slice_pipeline(model, scheduler, device, dtype)
        case = MaskedCase(image.name.split(".")[0], image, mask, tissue=tissue)
        with console.status("Making both volumes"):
            options: dict[str, Any] = {"seed": seed, "num_inference_steps": steps, "unit": unit}
            result = run(pipe, case, edited_mask, out, slice_index=slice_index, **options)
    Console().print(
        f"[bold green]Written:[/] {escape(str(out))}\nMean absolute difference: {result.inside:.4g} inside the edit, "
        f"{result.outside:.4g} in the rest of the mask (informed slice {result.slice_index})",
        soft_wrap=True,
    )
