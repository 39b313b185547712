"""`voxdiff cohort`: the digital cohort as a folder of NIfTI files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors, progress_bar


def cohort(
    out: Annotated[Path, typer.Argument(help="Folder to write to; one begun with the same settings is continued.")],
    subjects: Annotated[int, typer.Option(help="Number of subjects.")] = 200,
    size: Annotated[int, typer.Option(help="Voxels a side; the field of view is 208 mm (mr) or 384 mm (ct).")] = 64,
    seed: Annotated[int, typer.Option(help="Where to start in the split's own range of subjects.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test; splits never share a subject.")] = "train",
    contrasts: Annotated[
        str, typer.Option(help="Comma-separated MR contrasts of each subject: t1, t1gd, t2, flair.")
    ] = "t1",
    lesions: Annotated[bool, typer.Option("--lesions", help="Give each subject a brain tumour, with labels.")] = False,
    modality: Annotated[str, typer.Option(help="mr (brain) or ct (abdomen, in HU).")] = "mr",
    template: Annotated[
        str | None, typer.Option(help="Derive all brains from mni152 or colin27 instead of either.")
    ] = None,
) -> None:
    """Write simulated brain MR or abdominal CT subjects, with labels and known factors."""
    from voxdiff.data.cohort_files import write_cohort  # here, so that `voxdiff --help` does not wait for torch

    console = Console(stderr=True)
    with one_sentence_errors(console), progress_bar(console) as progress:
        task = progress.add_task("Simulating", total=max(subjects, 0))
        metadata = write_cohort(
            out,
            subjects,
            split,
            size=size,
            seed=seed,
            contrasts=tuple(name.strip() for name in contrasts.split(",") if name.strip()),
            lesions=lesions,
            modality=modality,
            template=template,
            on_subject=lambda: progress.advance(task),
        )
    Console().print(
        f"[bold green]Written:[/] {subjects} simulated subjects, listed in {escape(str(metadata))}\n"
        f"Load them with [cyan]datasets.load_dataset('niftifolder', data_dir={escape(repr(str(out)))})[/]",
        soft_wrap=True,
    )
