"""`voxdiff utility`: networks trained on real, synthetic and mixed sets, tested on real volumes."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from voxdiff.cli.console import one_sentence_errors, progress_bar

TASKS = ("segmentation", "classification")


def utility(
    real: Annotated[Path, typer.Option(help="Folder of real training volumes.")],
    synthetic: Annotated[Path, typer.Option(help="Folder of the generator's volumes.")],
    test: Annotated[Path, typer.Option(help="Folder of real volumes that neither training nor generator has seen.")],
    image: Annotated[str, typer.Option(help="Column of the images, such as t1 for t1_file_name.")],
    label: Annotated[str, typer.Option(help="Column of the label maps, or of the class in metadata.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for the report and the finished runs; a killed one goes on.")],
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    settings: Annotated[
        str, typer.Option(help="Comma-separated mixes: real, synthetic, real+synthetic, 100S, 50R+50S, ...")
    ] = "real,synthetic,real+synthetic",
    folds: Annotated[int, typer.Option(help="Fold i leaves every so many-th training volume out; 1: none.")] = 3,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds; each fold is trained with each.")] = "0,1",
    steps: Annotated[int, typer.Option(help="Optimisation steps a run, the same in every setting.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Volumes or patches a step.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 5e-3,
    patch_size: Annotated[
        str | None, typer.Option(help="Segmentation: voxels x,y,z seen at once, multiples of 8 from 16; default: all.")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Segmentation: NAME=1,2,3, repeat for each; or brats. Default: each label.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Bring the volumes to this grid x,y,z.")] = None,
    spacing: Annotated[str | None, typer.Option(help="Bring the volumes to this voxel size in mm, x,y,z.")] = None,
    unit: Annotated[str | None, typer.Option(help="HU or a.u., where the files do not say.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "float32",
) -> None:
    """Train on real, synthetic and mixed volumes, test on real ones, and report Dice and HD95 or accuracy and F1."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        from voxdiff.metrics.downstream import TrainingSettings
        from voxdiff.metrics.utility import classification_utility, segmentation_utility

        if task not in TASKS:
            raise ValueError(f"--task is {task!r}; allowed are {', '.join(TASKS)}.")
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file; give a folder.")
        training = TrainingSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patch_size=_three(patch_size, "--patch-size", int),
            device=device,
            dtype=dtype,
        )
        grid = {"size": _three(size, "--size", int), "spacing": _three(spacing, "--spacing", float)}
        folders = {"real": real, "synthetic": synthetic, "test": test}
        with progress_bar(console) as progress:
            bar = progress.add_task("Training", total=None)
            shared: dict[str, Any] = {
                "settings": [name.strip() for name in settings.split(",")],
                "folds": folds,
                "seeds": _whole_numbers(seeds, "--seeds"),
                "training": training,
                "runs_dir": out / "runs",
                "on_progress": lambda done, total: progress.update(bar, completed=done, total=total),
            }
            if task == "segmentation":
                pairs, spacing_mm = _segmentation_pairs(folders, image, label, grid, unit, out / "volumes")
                regions = _regions(region or [])
                result = segmentation_utility(*pairs, regions=regions, spacing_mm=spacing_mm, **shared)
            else:
                if region:
                    raise ValueError("--region was given for a classification; it belongs to segmentation.")
                pairs = _classification_pairs(folders, image, label, grid, unit, out / "volumes")
                result = classification_utility(*pairs, **shared)
        _write(out, result)
    Console().print(Markdown(result.to_markdown()))
    Console().print(f"[bold green]Written:[/] {escape(str(out / 'utility.json'))} and utility.md", soft_wrap=True)


class _Pairs(Sequence[tuple[Any, Any]]):
    """Items of a `VolumeDataset` as pairs of an image and its label map or class."""

    def __init__(self, dataset: Any, image: str, target: str | Sequence[int]) -> None:
        self.dataset, self.image, self.target = dataset, image, target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        import torch

        item = self.dataset[index]
        if isinstance(self.target, str):
            return item[self.image], item[self.target].round().to(torch.uint8)
        return item[self.image], self.target[index]


def _segmentation_pairs(
    folders: Mapping[str, Path], image: str, label: str, grid: Mapping[str, Any], unit: str | None, cache_dir: Path
) -> tuple[list[_Pairs], tuple[float, ...]]:
    """The pairs of the real, synthetic and test folder, and the voxel size of the test set."""
    from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
    from voxdiff.metrics.nnunet import require_same_grid
    from voxdiff.volumes import VolumeProcessor, load_volume

    subjects = {name: find_subjects(folder, [image, label]) for name, folder in folders.items()}
    for subject in [subject for found in subjects.values() for subject in found]:
        require_same_grid(
            load_volume(subject[label]), load_volume(subject[image]), "the label map", subject["subject_id"]
        )
    processor, unit = _image_processor(folders, subjects, image, grid, unit)
    labels = VolumeProcessor(intensity="labels", high=255, value_range=(0, 255), **grid)
    pairs = [
        _Pairs(VolumeDataset(found, {image: processor, label: labels}, cache_dir=cache_dir, unit=unit), image, label)
        for found in subjects.values()
    ]
    spacings = {_spacing_of(processor, subject[image], unit) for subject in subjects["test"]}
    if len(spacings) > 1:
        raise ValueError(f"The test volumes have {len(spacings)} voxel sizes; bring them to one with --spacing.")
    return pairs, spacings.pop()


def _classification_pairs(
    folders: Mapping[str, Path], image: str, label: str, grid: Mapping[str, Any], unit: str | None, cache_dir: Path
) -> list[_Pairs]:
    """The pairs of the real, synthetic and test folder; classes are numbered in the order of their names over all."""
    from voxdiff.data.volume_dataset import VolumeDataset, find_subjects

    subjects = {name: find_subjects(folder, [image]) for name, folder in folders.items()}
    classes = {name: _read_classes(folders[name], subjects[name], image, label) for name in folders}
    numbers = {
        value: place for place, value in enumerate(sorted({value for found in classes.values() for value in found}))
    }
    processor, unit = _image_processor(folders, subjects, image, grid, unit)
    return [
        _Pairs(
            VolumeDataset(found, {image: processor}, cache_dir=cache_dir, unit=unit),
            image,
            [numbers[value] for value in classes[name]],
        )
        for name, found in subjects.items()
    ]


def _image_processor(
    folders: Mapping[str, Path],
    subjects: Mapping[str, Sequence[Mapping[str, Any]]],
    image: str,
    grid: Mapping[str, Any],
    unit: str | None,
) -> tuple[Any, str | None]:
    """How all images are brought to [0, 1], chosen from the real training set, and their unit."""
    from voxdiff.metrics.set_checks import require_same_range
    from voxdiff.metrics.volume_sources import read_header, standard_processor, value_range

    units = {unit} | {read_header(subject[image]).unit for found in subjects.values() for subject in found}
    named = sorted(found for found in units if found is not None)
    if len(named) > 1:
        raise ValueError(f"The images are in {' and '.join(named)}; give sets of one unit, and --unit like the files.")
    unit = named[0] if named else None
    files = {name: [subject[image] for subject in found] for name, found in subjects.items()}
    chosen = standard_processor(folders["real"], files["real"], unit)
    ranges = {name: (str(folders[name]), value_range(paths)) for name, paths in files.items()}
    require_same_range(chosen, ranges.pop("real"), dict(ranges.values()))
    return replace(chosen, **grid), chosen.unit


def _spacing_of(processor: Any, path: Path, unit: str | None) -> tuple[float, ...]:
    import numpy as np

    _, geometry = processor.preprocess(path, unit=unit if processor.unit == "HU" else None)
    edges = np.linalg.norm(np.array(geometry.model_affine)[:3, :3], axis=0)
    return tuple(round(float(edge), 4) for edge in edges)


def _read_classes(folder: Path, subjects: Sequence[Mapping[str, Any]], image: str, label: str) -> list[str]:
    """The class of each subject, from the row of metadata.csv that names its image."""
    classes = {}
    for metadata in sorted(folder.rglob("metadata.csv")):
        with metadata.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name = row.get(f"{image}_file_name") or row.get("file_name")
                if name and row.get(label):
                    classes[(metadata.parent / name).resolve()] = row[label]
    missing = [subject for subject in subjects if Path(subject[image]).resolve() not in classes]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(subjects)} volumes in {folder} have no {label!r} in a metadata.csv (the first is "
            f"{Path(missing[0][image]).name}); add the column."
        )
    return [classes[Path(subject[image]).resolve()] for subject in subjects]


def _regions(texts: Sequence[str]) -> Mapping[str, Sequence[int]] | None:
    """`["WT=1,2,3", ...]` or `["brats"]` to name → labels."""
    from voxdiff.metrics.segmentation import BRATS_REGIONS

    if list(texts) == ["brats"]:
        return BRATS_REGIONS
    if not all("=" in text for text in texts):
        raise ValueError(f"--region is {' '.join(texts)!r}; write NAME=1,2,3 for each, or brats alone.")
    split = [text.split("=", 1) for text in texts]
    return {name: _whole_numbers(labels, "--region") for name, labels in split} or None


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}; give whole numbers separated by commas.") from error


def _three(text: str | None, option: str, kind: Any) -> Any:
    """`"64,64,32"` to three numbers, one number to three equal ones."""
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}; give x,y,z or one number for all.") from error
    if len(values) not in (1, 3):
        raise ValueError(f"{option} is {text!r}; give x,y,z or one number for all.")
    return tuple(values * (3 // len(values)))


def _write(out: Path, result: Any) -> None:
    from voxdiff.volumes import atomic_path

    for name, text in (("utility.json", json.dumps(result.to_dict(), indent=2)), ("utility.md", result.to_markdown())):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
