"""`voxdiff convert`: an official checkpoint into a pipeline folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors


def convert(
    name: Annotated[
        str, typer.Argument(help="Official network: wdm, cwdm, med (3D MedDiffusion), gem (GEM-3D) or fdm (cDPM).")
    ],
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Its checkpoint: a .pt with the bare state dict, or .safetensors; of med the BiFlowNet, of gem stage 2."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Pipeline folder to write; must not exist, or be empty.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="How the model was trained: brats-128, lidc-128, brats-256, lidc-256 for wdm; cwdm-t1n, cwdm-t1c, "
            "cwdm-t2w, cwdm-t2f for cwdm; gem-brats (default), gem-abdomen for gem. med and fdm need none."
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            "--autoencoder",
            "--vae",
            help="Checkpoint of the autoencoder (.ckpt), which med has beside the BiFlowNet; of gem, KL-f8 instead of the "
            "copy inside stage 2.",
        ),
    ] = None,
    slice_model: Annotated[
        Path | None, typer.Option(help="Checkpoint of gem's model that generates informed slices (.ckpt).")
    ] = None,
    norm_num_groups: Annotated[
        int | None, typer.Option(help="Groups of the group norms, if not as published (32).")
    ] = None,
) -> None:
    """Convert an official checkpoint to a folder that Pipeline.from_pretrained loads."""
    console = Console(stderr=True)
    with one_sentence_errors(console), console.status(f"Converting {escape(str(checkpoint))}"):
        folder = _convert(name, checkpoint, out, preset, autoencoder, slice_model, norm_num_groups)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    Console().print(
        f"[bold green]Written:[/] {escape(str(folder))} ({size:.0f} MB)\n"
        f"Load it with [cyan]voxdiff.Pipeline.from_pretrained({escape(repr(str(folder)))})[/]",
        soft_wrap=True,
    )


def _convert(
    name: str,
    checkpoint: Path,
    out: Path,
    preset: str | None,
    autoencoder: Path | None,
    slice_model: Path | None,
    norm_num_groups: int | None,
) -> Path:
    # Here, so that `voxdiff --help` does not wait for diffusers.
    from voxdiff.hub.convert import convert_checkpoint
    from voxdiff.hub.convert_fdm_pipeline import convert_fdm_checkpoint
    from voxdiff.hub.convert_gem_pipeline import convert_gem_checkpoints
    from voxdiff.hub.convert_med_pipeline import convert_med_checkpoints

    if name == "gem":
        if norm_num_groups is not None:
            raise ValueError("gem takes --preset, --slice-model and --autoencoder, and no other options.")
        return convert_gem_checkpoints(
            checkpoint, out, slice_path=slice_model, vae_path=autoencoder, preset=preset or "gem-brats"
        )
    if slice_model is not None:
        raise ValueError(f"--slice-model belongs to gem, and the network is {name!r}; leave it out.")
    if name == "med":
        if autoencoder is None or preset is not None or norm_num_groups is not None:
            raise ValueError(
                "med takes --autoencoder with the second checkpoint, and neither --preset nor other options."
            )
        return convert_med_checkpoints(autoencoder, checkpoint, out)
    if autoencoder is not None:
        raise ValueError(f"--autoencoder belongs to med and gem, and the network is {name!r}; leave it out.")
    if preset is None and name in ("wdm", "cwdm"):
        raise ValueError(f"--preset is missing, which says how the {name!r} model was trained; see --help.")
    overrides = {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}
    if name == "fdm":
        if preset is not None:
            raise ValueError("fdm takes --norm-num-groups and no other options.")
        return convert_fdm_checkpoint(checkpoint, out, unet_overrides=overrides)
    return convert_checkpoint(name, checkpoint, out, preset=preset or "", **overrides)
