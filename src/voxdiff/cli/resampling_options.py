"""What the data set tools of the command line have in common: options, filters, the nnU-Net export, the end of a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import progress_bar
from voxdiff.cli.generate import load_pipeline

if TYPE_CHECKING:
    from voxdiff.volumes import VolumeProcessor
    from voxdiff.workflows.enhance import ResamplingResult
    from voxdiff.workflows.enhancement_filter import Segmenter, VolumeFilter
    from voxdiff.workflows.masked_cases import MaskedCase
    from voxdiff.workflows.nnunet_dataset import NnUNetDataset

Model = Annotated[str, typer.Argument(help="An informed-slice model: a shipped one, a folder, or a Hub repository.")]
Folder = Annotated[Path, typer.Argument(help="Folder to fill; one begun with the same settings is continued.")]
Subject = Annotated[
    str | None, typer.Option(help="Column that says whose scan it is; default: subject_id, or the file name.")
]
Tissue = Annotated[
    str | None, typer.Option(help="Column of tissue maps; gives the brain around tumour labels a label of its own.")
]
Split = Annotated[str | None, typer.Option(help="Split of the folder; default: train.")]
StartPosition = Annotated[
    float | None, typer.Option(help="Where the informed slice lies, 0 to 1; default: the centre.")
]
Unit = Annotated[str | None, typer.Option(help="State HU for CT images whose lowest value is not negative.")]
Steps = Annotated[int, typer.Option(help="Solver steps a window.")]
BatchSize = Annotated[int, typer.Option(help="Volumes sampled at once.")]
Scheduler = Annotated[
    str | None, typer.Option(help="ddpm, ddim, dpm++, unipc, deis, euler or heun; default: the model's own.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="Precision of the networks: float32, bfloat16 or float16.")]
NnUNetFolder = Annotated[
    Path | None, typer.Option(help="Also export to this folder, which nnU-Net knows as nnUNet_raw.")
]
NnUNetId = Annotated[int | None, typer.Option(help="1 to 999; above 10 is free.")]
NnUNetName = Annotated[str | None, typer.Option(help="Name of nnU-Net's data set; default: after the command.")]
NnUNetChannel = Annotated[str | None, typer.Option(help="nnU-Net's name of the image, CT for HU; default: MR.")]
NnUNetLabels = Annotated[list[str] | None, typer.Option(help="NAME=1, or NAME=1,2,3 for a region; repeat.")]
NnUNetBackground = Annotated[str | None, typer.Option(help="Labels that become background, such as 4.")]

FILTERS = ("mask-agreement", "memorisation", "outlier")
_SHOWN = 5
_SEGMENTER_STEPS = 400


def load_informed_slice_pipeline(model: str, scheduler: str | None, device: str | None, dtype: str) -> Any:
    """The pipeline, which must be an informed-slice one."""
    from voxdiff.pipelines.pipeline_informed_slice import InformedSlicePipeline

    pipe = load_pipeline(model, scheduler, device, dtype)
    if not isinstance(pipe, InformedSlicePipeline):
        raise ValueError(f"{model} is a {type(pipe).__name__}; give an InformedSlicePipeline.")
    return pipe


def make_filters(
    texts: Sequence[str],
    cases: "Sequence[MaskedCase]",
    pipe: Any,
    *,
    segmenter: Path | None,
    segmenter_steps: int | None,
    agreement_labels: str | None,
) -> "list[VolumeFilter]":
    """``["outlier=6", "memorisation"]`` to filters; a segmenter is trained if its folder does not exist."""
    from voxdiff.pipelines.informed_slice_latents import reconstruct
    from voxdiff.workflows.enhancement_filter import (
        MaskAgreementFilter,
        MemorisationFilter,
        OutlierFilter,
        check_agreement,
        require_able,
    )

    wanted = dict(map(_parse_filter, texts))
    if len(wanted) < len(texts):
        raise ValueError(f"--filter names one filter twice: {', '.join(texts)}; give each once.")
    if "mask-agreement" not in wanted and (segmenter or segmenter_steps is not None or agreement_labels):
        raise ValueError(
            "--segmenter, --segmenter-steps and --agreement-labels belong to --filter mask-agreement; add it or drop them."
        )
    filters: list[Any] = []
    processor = pipe.volume_processor
    for name, threshold in sorted(wanted.items(), reverse=True):  # the segmenter, which takes longest, last
        given = {} if threshold is None else {"threshold": threshold}
        if name == "memorisation":
            filters.append(MemorisationFilter(cases, processor, **given))
        elif name == "outlier":
            filters.append(OutlierFilter(cases, processor, reconstruct=partial(reconstruct, pipe), **given))
        else:
            if segmenter is None:
                raise ValueError(
                    "--filter mask-agreement needs --segmenter, the folder of the segmenter or of a new one."
                )
            labels = parse_labels(agreement_labels) if agreement_labels else None
            unknown = sorted(set(labels or ()) - set(pipe.mask_encoder.values))
            if unknown:
                raise ValueError(
                    f"--agreement-labels has {unknown[0]}; this model's masks have the labels "
                    f"{', '.join(map(str, pipe.mask_encoder.values))}."
                )
            check_agreement(labels=labels, **given)  # before the segmenter is trained
            network = _segmenter(segmenter, cases, processor, segmenter_steps, str(pipe.device))
            filters.append(MaskAgreementFilter(network, labels=labels, **given))
            require_able(filters[-1], cases)
    return filters


def parse_augmentation(
    augment: bool, anatomy: str | None, tumour_labels: str | None, brain_label: int | None, outside_label: int | None
) -> dict[str, Any] | None:
    """Options of :func:`voxdiff.data.mask_augmentation.augment_mask`; None without augmentation."""
    of_brains = {
        "tumour_labels": parse_labels(tumour_labels) if tumour_labels else None,
        "brain_label": brain_label,
    }
    given = {"kind": anatomy, "outside_label": outside_label, **of_brains}
    options = {name: value for name, value in given.items() if value is not None}
    if options and not augment:
        raise ValueError(
            "--anatomy, --tumour-labels, --brain-label and --outside-label belong to --augment-masks; add it or drop them."
        )
    if anatomy == "organs" and any(name in options for name in of_brains):
        raise ValueError("--tumour-labels and --brain-label belong to --anatomy brain; drop them.")
    return options if augment else None


def parse_nnunet(
    folder: Path | None,
    dataset_id: int | None,
    name: str | None,
    channel: str | None,
    labels: Sequence[str] | None,
    background: str | None,
    *,
    default_name: str,
) -> "NnUNetDataset | None":
    """The nnU-Net export that the options describe, or None."""
    from voxdiff.cli.nnunet import parse_label
    from voxdiff.workflows.nnunet_dataset import NnUNetDataset

    if folder is None:
        if dataset_id is not None or name or channel or labels or background:
            raise ValueError("The options --nnunet-... belong to --nnunet FOLDER; add it or drop them.")
        return None
    if dataset_id is None or not labels:
        raise ValueError("--nnunet needs --nnunet-id and at least one --nnunet-label NAME=VALUE.")
    return NnUNetDataset(
        folder=folder,
        dataset_id=dataset_id,
        name=name or default_name,
        channel=channel or "MR",
        labels=dict(map(parse_label, labels)),
        to_background=parse_labels(background) if background else (),
    )


def print_result(result: "ResamplingResult", nnunet: "NnUNetDataset | None") -> None:
    """What was written, what was rejected, and why."""
    console = Console()
    console.print(
        f"[bold green]Written:[/] {len(result.images)} volume(s) to {escape(str(result.folder))}, listed in "
        "metadata.csv and manifest.json",
        soft_wrap=True,
    )
    if nnunet is not None:
        where = escape(str(nnunet.folder)) if result.images else "nothing to export, every volume was rejected"
        console.print(f"[bold green]nnU-Net:[/] {where}", soft_wrap=True)
    if result.rejected:
        console.print(f"[bold yellow]Rejected:[/] {len(result.rejected)} volume(s)")
        for name, reasons in list(result.rejected.items())[:_SHOWN]:
            console.print(f"  {escape(name)}: {escape('; '.join(reasons))}", soft_wrap=True)


def _parse_filter(text: str) -> tuple[str, float | None]:
    name, _, number = text.partition("=")
    if name not in FILTERS:
        raise ValueError(f"--filter is {text!r}; write NAME or NAME=THRESHOLD with one of {', '.join(FILTERS)}.")
    try:
        return name, float(number) if number else None
    except ValueError as error:
        raise ValueError(f"--filter is {text!r}; the threshold is a number.") from error


def parse_labels(text: str) -> list[int]:
    """``1,2,3``."""
    try:
        return [int(label) for label in text.split(",")]
    except ValueError as error:
        raise ValueError(f"The labels are {text!r}; write whole numbers with commas, such as 1,2,3.") from error


def _segmenter(
    folder: Path, cases: "Sequence[MaskedCase]", processor: "VolumeProcessor", steps: int | None, device: str
) -> "Segmenter":
    from voxdiff.metrics.downstream import TrainingSettings
    from voxdiff.workflows.case_segmenter import CaseSegmenter, train_case_segmenter

    if not folder.exists():
        with progress_bar(Console(stderr=True)) as progress:
            count = _SEGMENTER_STEPS if steps is None else steps
            task = progress.add_task("Training the segmenter", total=count)
            settings = TrainingSettings(steps=count, device=device)
            trained = train_case_segmenter(cases, processor, settings=settings, on_step=lambda: progress.advance(task))
        trained.save(folder)
    segmenter = CaseSegmenter.load(folder, device=device)
    if steps not in (None, segmenter.training.steps):
        raise ValueError(
            f"The segmenter in {folder} was trained for {segmenter.training.steps} steps and --segmenter-steps is {steps}; "
            "drop the option, or give another folder."
        )
    return segmenter
