"""`voxdiff convert`: an official checkpoint into a pipeline folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def convert(
    name: Annotated[str, typer.Argument(help="Official network: wdm or cwdm.")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Its checkpoint: a .pt with the bare state dict, or .safetensors.")
    ],
    out: Annotated[Path, typer.Argument(help="Pipeline folder to write; must not exist, or be empty.")],
    preset: Annotated[
        str,
        typer.Option(
            help="How the model was trained: brats-128, lidc-128, brats-256, lidc-256 for wdm; cwdm-t1n, cwdm-t1c, "
            "cwdm-t2w, cwdm-t2f for cwdm."
        ),
    ],
    norm_num_groups: Annotated[
        int | None, typer.Option(help="Groups of the group norms, if not as published (32).")
    ] = None,
) -> None:
    """Convert an official checkpoint to a folder that Pipeline.from_pretrained loads."""
    from voxdiff.hub.convert import convert_checkpoint  # here, so that `voxdiff --help` does not wait for diffusers

    overrides = {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}
    console = Console(stderr=True)
    try:
        with console.status(f"Converting {escape(str(checkpoint))}"):
            folder = convert_checkpoint(name, checkpoint, out, preset=preset, **overrides)
    except (ValueError, OSError) as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    Console().print(
        f"[bold green]Written:[/] {escape(str(folder))} ({size:.0f} MB)\n"
        f"Load it with [cyan]voxdiff.Pipeline.from_pretrained({escape(repr(str(folder)))})[/]",
        soft_wrap=True,
    )
