"""`voxdiff evaluate`: measure a folder of synthetic volumes; `voxdiff compare`: several methods in one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import Progress

from voxdiff.cli.console import one_sentence_errors, progress_bar

if TYPE_CHECKING:
    from voxdiff.metrics.stages import Advance, Stage


def evaluate(
    real: Annotated[Path, typer.Option(help="Folder of real volumes that the generator has not seen.")],
    synthetic: Annotated[Path, typer.Option(help="Folder of the volumes to judge.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; a killed evaluation goes on from its cache.")],
    train: Annotated[Path | None, typer.Option(help="The generator's training volumes; adds privacy.")] = None,
    paired: Annotated[bool, typer.Option("--paired", help="Compare volumes of the same name.")] = False,
    masks: Annotated[
        Path | None, typer.Option(help="Masks named as the real volumes: measure pairs inside them.")
    ] = None,
    labels_real: Annotated[Path | None, typer.Option(help="Label maps of the real volumes.")] = None,
    labels_synthetic: Annotated[
        Path | None, typer.Option(help="Label maps of the synthetic volumes: Dice, HD95, lesion sizes.")
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="Feature extractor, NAME or NAME=WEIGHTS.safetensors; repeat for several."),
    ] = None,
    planes: Annotated[bool, typer.Option("--planes", help="Also features of slices: FID-A, FID-C, FID-S.")] = False,
    factors: Annotated[str | None, typer.Option(help="brain (T1w, skull-stripped) or ct: compare factors.")] = None,
    subgroup: Annotated[
        str | None, typer.Option(help="Column of both metadata.csv: everything again for each of its values.")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Use the first so many volumes of each set.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs drawn within each set for its diversity.")] = 200,
    pattern: Annotated[str, typer.Option(help="Which files, such as '*_t1.nii.gz'.")] = "*",
    label_pattern: Annotated[str, typer.Option(help="Which files of masks and label maps.")] = "*",
    unit: Annotated[str | None, typer.Option(help="HU or a.u., where the headers do not say.")] = None,
    size: Annotated[str | None, typer.Option(help="Grid to bring all volumes to: N or X,Y,Z.")] = None,
    spacing: Annotated[str | None, typer.Option(help="Voxel size in mm to bring all volumes to.")] = None,
    reidentify: Annotated[bool, typer.Option("--reidentify", help="Train a re-identification network.")] = False,
    lpips_weights: Annotated[
        str | None, typer.Option(help="VGG-16's weights (safetensors) for LPIPS; without them a substitute is named.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the method in the report.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="Where the extractors run.")] = "cpu",
) -> None:
    """Measure synthetic volumes by one pinned protocol: fidelity, diversity, pairs, privacy, with anchors and intervals."""
    from voxdiff.metrics.evaluation import evaluate as run
    from voxdiff.metrics.evaluation_sets import DEFAULT_EXTRACTOR, EvaluationOptions

    console = Console(stderr=True)
    with one_sentence_errors(console):
        if (labels_real is None) != (labels_synthetic is None):
            raise ValueError("Label maps were given for one set only; give --labels-real and --labels-synthetic.")
        options = EvaluationOptions(
            paired=paired,
            extractors=tuple(extractor or [DEFAULT_EXTRACTOR]),
            planes=planes,
            num=num,
            pairs=pairs,
            pattern=pattern,
            label_pattern=label_pattern,
            unit=unit,
            size=_three(size, int, "--size"),
            spacing=_three(spacing, float, "--spacing"),
            factors=factors,
            subgroup=subgroup,
            reidentify=reidentify,
            lpips_weights=lpips_weights,
            seed=seed,
            device=device,
        )
        sets: dict[str, Any] = {"train": train, "masks": masks}
        if labels_real and labels_synthetic:
            sets["labels"] = (labels_real, labels_synthetic)
        with progress_bar(console) as progress:
            on_stage = _stages_of(progress)
            report = run(real, synthetic, out=out, name=name, options=options, on_stage=on_stage, **sets)
    Console().print(Markdown(report.to_markdown()))
    Console().print(f"[bold green]Written:[/] {escape(str(out / 'report.json'))}", soft_wrap=True)


def _stages_of(progress: Progress) -> "Stage":
    """A callback that shows each stage as a bar of its own."""

    def on_stage(text: str, total: int) -> "Advance":
        task = progress.add_task(text, total=total)
        return lambda: progress.advance(task)

    return on_stage


def compare(
    reports: Annotated[list[Path], typer.Argument(help="report.json files, or the folders that hold them.")],
    out: Annotated[Path | None, typer.Option(help="Also write the table to this Markdown file.")] = None,
) -> None:
    """Put several methods into one table; reports of different protocols are refused."""
    from voxdiff.metrics.comparison import compare_reports
    from voxdiff.volumes import atomic_path

    with one_sentence_errors(Console(stderr=True)):
        text = compare_reports(reports)
        if out is not None:
            with atomic_path(out) as temporary:
                temporary.write_text(text, encoding="utf-8")
    Console().print(Markdown(text))


def _three(text: str | None, kind: type, option: str) -> tuple | None:
    """Three numbers from "N" or "X,Y,Z"."""
    if text is None:
        return None
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise ValueError(f"{option} is {text!r}; give one number, or three with commas (x,y,z).")
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)
