"""`voxdiff harmonize`: one appearance for a whole data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from voxdiff.cli.console import one_sentence_errors, progress_bar
from voxdiff.cli.resampling_options import (
    BatchSize,
    Device,
    Dtype,
    Folder,
    Model,
    NnUNetBackground,
    NnUNetChannel,
    NnUNetFolder,
    NnUNetId,
    NnUNetLabels,
    NnUNetName,
    Scheduler,
    Split,
    StartPosition,
    Steps,
    Subject,
    Tissue,
    Unit,
    load_informed_slice_pipeline,
    parse_nnunet,
    print_result,
)


def harmonize(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Folder of masks, such as `voxdiff cohort` writes.")],
    informed_slice: Annotated[
        str, typer.Argument(help="A volume, or a slice, whose appearance all shall have; or: generated.")
    ],
    out: Folder,
    mask: Annotated[str, typer.Option(help="Column of the masks.")] = "mask",
    image: Annotated[
        str | None, typer.Option(help="Column of the images, where file names tell them from the masks.")
    ] = None,
    slice_index: Annotated[
        int | None, typer.Option(help="Slice of the volume; default: the one at the start position.")
    ] = None,
    subject: Subject = None,
    tissue: Tissue = None,
    split: Split = None,
    start_position: StartPosition = None,
    unit: Unit = None,
    nnunet: NnUNetFolder = None,
    nnunet_id: NnUNetId = None,
    nnunet_name: NnUNetName = None,
    nnunet_channel: NnUNetChannel = None,
    nnunet_label: NnUNetLabels = None,
    nnunet_background: NnUNetBackground = None,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    batch_size: BatchSize = 1,
    scheduler: Scheduler = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Make a volume for every mask, all with one informed slice."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        from voxdiff.workflows.harmonize import GENERATED
        from voxdiff.workflows.harmonize import harmonize as run
        from voxdiff.workflows.masked_cases import read_cases

        if informed_slice == GENERATED and slice_index is not None:
            raise ValueError("--slice-index belongs to a volume, and the slice is to be generated; leave it out.")
        export = parse_nnunet(
            nnunet, nnunet_id, nnunet_name, nnunet_channel, nnunet_label, nnunet_background, default_name="Harmonized"
        )
        cases = read_cases(data, mask=mask, image=image, subject=subject, tissue=tissue, split=split)
        pipe = load_informed_slice_pipeline(model, scheduler, device, dtype)
        with progress_bar(console) as progress:
            task = progress.add_task("Harmonizing", total=len(cases))
            result = run(
                pipe,
                cases,
                out,
                informed_slice=informed_slice if slice_index is None else (informed_slice, slice_index),
                seed=seed,
                start_position=start_position,
                unit=unit,
                nnunet=export,
                num_inference_steps=steps,
                batch_size=batch_size,
                on_volume=lambda: progress.advance(task),
            )
    print_result(result, export)
