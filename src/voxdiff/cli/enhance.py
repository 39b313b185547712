"""`voxdiff enhance`: a data set re-sampled, every mask with the appearance of other subjects."""

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
    make_filters,
    parse_augmentation,
    parse_nnunet,
    print_result,
)

Image = Annotated[str, typer.Option(help="Column of the images.")]
Mask = Annotated[str, typer.Option(help="Column of the masks.")]
Variants = Annotated[int, typer.Option(help="Volumes a mask.")]
Informed = Annotated[str, typer.Option(help="Informed slices: cross (other subjects'), generated, own, or none.")]
IncludeSelf = Annotated[bool, typer.Option("--include-self", help="Let cross draw the mask's own subject too.")]
AugmentMasks = Annotated[bool, typer.Option("--augment-masks", help="Mirror and rotate masks, move and scale tumours.")]
Anatomy = Annotated[
    str | None, typer.Option(help="How masks are augmented: brain, or organs (rotation only; default of models in HU).")
]
TumourLabels = Annotated[str | None, typer.Option(help="Labels that --augment-masks moves as one; default: 1,2,3.")]
BrainLabel = Annotated[int | None, typer.Option(help="Label of brain without tumour; default: 4.")]
OutsideLabel = Annotated[int | None, typer.Option(help="Label outside the anatomy; default: 0.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", help="mask-agreement, memorisation or outlier, or NAME=THRESHOLD; repeat for each."),
]
SegmenterFolder = Annotated[
    Path | None, typer.Option(help="For mask-agreement: a segmenter's folder; trained on the data if missing.")
]
SegmenterSteps = Annotated[int | None, typer.Option(help="Training steps of a new segmenter; default: 400.")]
AgreementLabels = Annotated[
    str | None, typer.Option(help="Labels that are compared as one region: 1,2,3; default: each, and their mean.")
]
Seed = Annotated[int, typer.Option(help="Of every choice, the noise and the masks' changes.")]
Data = Annotated[Path, typer.Argument(help="Folder of images and masks, such as `voxdiff cohort` writes.")]


def enhance(
    model: Model,
    data: Data,
    out: Folder,
    image: Image = "image",
    mask: Mask = "mask",
    subject: Subject = None,
    tissue: Tissue = None,
    split: Split = None,
    variants: Variants = 1,
    informed: Informed = "cross",
    include_self: IncludeSelf = False,
    augment_masks: AugmentMasks = False,
    anatomy: Anatomy = None,
    tumour_labels: TumourLabels = None,
    brain_label: BrainLabel = None,
    outside_label: OutsideLabel = None,
    start_position: StartPosition = None,
    unit: Unit = None,
    filters: Filters = None,
    segmenter: SegmenterFolder = None,
    segmenter_steps: SegmenterSteps = None,
    agreement_labels: AgreementLabels = None,
    nnunet: NnUNetFolder = None,
    nnunet_id: NnUNetId = None,
    nnunet_name: NnUNetName = None,
    nnunet_channel: NnUNetChannel = None,
    nnunet_label: NnUNetLabels = None,
    nnunet_background: NnUNetBackground = None,
    steps: Steps = 50,
    seed: Seed = 0,
    batch_size: BatchSize = 1,
    scheduler: Scheduler = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Re-sample a data set: keep the masks, regenerate the images with informed slices of other subjects."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        from voxdiff.workflows.enhance import enhance as run
        from voxdiff.workflows.masked_cases import read_cases

        export = parse_nnunet(
            nnunet, nnunet_id, nnunet_name, nnunet_channel, nnunet_label, nnunet_background, default_name="Enhanced"
        )
        augmentation = parse_augmentation(augment_masks, anatomy, tumour_labels, brain_label, outside_label)
        cases = read_cases(data, image=image, mask=mask, subject=subject, tissue=tissue, split=split)
        pipe = load_informed_slice_pipeline(model, scheduler, device, dtype)
        chosen = make_filters(
            filters or [],
            cases,
            pipe,
            segmenter=segmenter,
            segmenter_steps=segmenter_steps,
            agreement_labels=agreement_labels,
        )
        with progress_bar(console) as progress:
            task = progress.add_task("Re-sampling", total=len(cases) * variants)
            result = run(
                pipe,
                cases,
                out,
                variants=variants,
                augment_masks=augment_masks,
                augmentation=augmentation,
                informed=informed,  # type: ignore[arg-type]
                include_self=include_self,
                seed=seed,
                start_position=start_position,
                unit=unit,
                filters=chosen,
                nnunet=export,
                num_inference_steps=steps,
                batch_size=batch_size,
                on_volume=lambda: progress.advance(task),
            )
    print_result(result, export)
