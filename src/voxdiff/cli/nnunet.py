"""`voxdiff export-nnunet`: a folder of volumes and label maps as an nnU-Net v2 data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors


def export_nnunet(
    data: Annotated[Path, typer.Argument(help="Folder of volumes and label maps, such as `voxdiff cohort` writes.")],
    out: Annotated[Path, typer.Argument(help="The folder that nnU-Net knows as nnUNet_raw.")],
    image: Annotated[
        list[str], typer.Option(help="Column of a channel, or COLUMN=NAME with nnU-Net's name (CT for HU); repeat.")
    ],
    label: Annotated[str, typer.Option(help="Column of the label maps.")],
    labels: Annotated[
        list[str], typer.Option(help="NAME=1, or NAME=1,2,3 for a region, large before small; repeat for each.")
    ],
    dataset_id: Annotated[int, typer.Option("--id", help="1 to 999; above 10 is free.")],
    name: Annotated[str, typer.Option(help="Name of the data set.")],
    split: Annotated[str | None, typer.Option(help="Split of the folder for training; default: train.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Split whose images become imagesTs.")] = None,
    file_ending: Annotated[str, typer.Option(help=".nii.gz or .nii.")] = ".nii.gz",
) -> None:
    """Export in nnU-Net v2's raw format, checked as nnU-Net checks it."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        from voxdiff.data.volume_dataset import find_subjects
        from voxdiff.metrics.nnunet import export_nnunet as export

        channels = dict(_parse_channel(text) for text in image)
        subjects = find_subjects(data, [*channels, label], split=split)
        tests = find_subjects(data, list(channels), split=test_split) if test_split else []
        folder = export(
            subjects,
            out,
            dataset_id=dataset_id,
            dataset_name=name,
            channel_names=channels,
            labels={"background": 0, **dict(parse_label(text) for text in labels)},
            file_ending=file_ending,
            test_subjects=tests,
            label_key=label,
        )
    Console().print(
        f"[bold green]Written:[/] {len(subjects)} training and {len(tests)} test cases to {escape(str(folder))}\n"
        f"Next: [cyan]nnUNet_raw={escape(str(out))} nnUNetv2_plan_and_preprocess -d {dataset_id} "
        "--verify_dataset_integrity[/]",
        soft_wrap=True,
    )


def _parse_channel(text: str) -> tuple[str, str]:
    """`"ct=CT"` to column and name; a column alone is its own name."""
    column, _, name = text.partition("=")
    return column, name or column


def parse_label(text: str) -> tuple[str, int | list[int]]:
    """`"tumour=1,2,3"` to its name and values."""
    name, _, values = text.partition("=")
    try:
        numbers = [int(value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"The label is {text!r}; write NAME=1, or NAME=1,2,3 for a region.") from error
    return name, numbers[0] if len(numbers) == 1 else numbers
