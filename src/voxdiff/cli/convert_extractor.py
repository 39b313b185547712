"""`voxdiff convert-extractor`: published weights of a feature extractor into the file that evaluation reads."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors


def convert_extractor(
    name: Annotated[
        str,
        typer.Argument(
            help="Network: medicalnet-resnet50 (or 10, 18, 34), radimagenet-resnet50, vgg16 or lpips-vgg (for LPIPS)."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="The publisher's checkpoint, such as resnet_50.pth.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Convert published extractor weights to safetensors, running none of the checkpoint's code."""
    from voxdiff.metrics.extractors.registry import convert_extractor_weights  # here, for a quick `voxdiff --help`
    from voxdiff.metrics.extractors.weights import file_sha256

    with one_sentence_errors(Console(stderr=True)):
        left_out = convert_extractor_weights(name, source, target)
    heads = sorted(key for key in left_out if not key.endswith("num_batches_tracked"))
    Console().print(
        f"[bold green]Written:[/] {escape(str(target))} (SHA-256 {file_sha256(target)})\n"
        f"Left out: {escape(', '.join(heads)) or 'nothing'}",
        soft_wrap=True,
    )
