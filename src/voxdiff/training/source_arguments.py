"""Arguments on the volumes that latent diffusion learns from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxdiff.training.arguments import option
from voxdiff.training.class_sources import COHORT_CLASSES, Grid, VolumeSource, classes_of, cohort_source, file_sources
from voxdiff.training.data_arguments import names, refuse, triple
from voxdiff.training.encoded_data_arguments import EncodedDataArguments
from voxdiff.volumes import VolumeProcessor

_INTENSITY = ("spacing", "intensity", "low", "high")
_OF_FILES = ("image_column", "class_column", "classes", *_INTENSITY, "unit")
_OF_DATA = ("split", "num_subjects", "grids", "scalar_columns", "cache_dir", *_OF_FILES)


@dataclass
class SourceArguments(EncodedDataArguments):
    """The volumes that are encoded, by class and grid, and what is known of them.

    None means that an option was not given.
    """

    cohort: str | None = option(
        None, f"The simulated digital cohort instead, a class for each of: {', '.join(COHORT_CLASSES)}."
    )
    grids: str | None = option(
        None,
        "Grids all volumes are brought to, such as '64,64,64;64,64,48', or those of one class: 'mr=64;ct=64,64,48'. The "
        "first of a class is its own in the pipeline. Default: the volumes' own.",
    )
    class_column: str | None = option(None, "Metadata column of the class; default: no classes.")
    classes: str | None = option(
        None, "JSON file, class -> options of its VolumeProcessor, where classes differ in intensity or spacing."
    )
    scalar_columns: str | None = option(
        None, "Numbers the model is conditioned on: metadata columns, or factors of the cohort."
    )

    def __post_init__(self) -> None:
        self.check_origin(of_files=_OF_FILES, of_data=_OF_DATA, example="mr,ct")
        if self.classes is not None:
            if self.class_column is None:
                raise ValueError("--classes describes the classes of a metadata column; give --class_column too.")
            refuse(self, _INTENSITY, "stands in the file of --classes")

    @property
    def scalar_names(self) -> list[str]:
        """Scalar conditions in the order of their columns."""
        return names(self.scalar_columns)

    def make_sources(self, cache_dir: Path) -> tuple[list[VolumeSource], list[str]]:
        """The volumes by class and grid, a class's own grid first.

        Args:
            cache_dir: Where simulated subjects and prepared files are kept.

        Returns:
            The sources, and a sentence for each volume that was left out.

        Raises:
            OSError, ValueError: If the data are missing or do not fit.
        """
        sources, left_out = (self._of_cohort(cache_dir), []) if self.cohort else self._of_files(cache_dir)
        for name in self.scalar_names:
            if not any(name in known for source in sources for known in source.scalars):
                raise ValueError(f"No volume has a number {name}; leave it out of --scalar_columns.")
        return sources, left_out

    def _of_cohort(self, cache_dir: Path) -> list[VolumeSource]:
        classes = names(self.cohort)
        if not set(classes) <= set(COHORT_CLASSES) or len(set(classes)) < len(classes):
            raise ValueError(f"--cohort is {self.cohort!r}; list some of {', '.join(COHORT_CLASSES)}, each once.")
        if self.grids is None:
            raise ValueError("The cohort is drawn on the grids that you choose; give --grids, such as 64.")
        sources = [
            cohort_source(
                name,
                grid,
                cache_dir,
                num_subjects=self.number_of_subjects,
                split=self.split or "train",
                scalar_names=self.scalar_names,
            )
            for name, grids in parse_grids(self.grids, classes).items()
            for grid in grids
        ]
        return sources if len(classes) > 1 else [replace(source, class_name=None) for source in sources]

    def _of_files(self, cache_dir: Path) -> tuple[list[VolumeSource], list[str]]:
        assert self.train_data_dir is not None
        wanted = list(self._processors().items())
        if self.unit is not None and all(processor.unit != "HU" for _, processor in wanted):
            raise ValueError(f"--unit {self.unit} belongs to a class in HU (--intensity window); leave it out.")
        if self.grids is not None:
            grids = parse_grids(self.grids, [name or "" for name, _ in wanted])
            wanted = [(name, replace(rule, size=grid)) for name, rule in wanted for grid in grids[name or ""]]
        return file_sources(
            self.train_data_dir,
            self.image_column or "image",
            wanted,
            split=self.split,
            class_column=self.class_column,
            scalar_names=self.scalar_names,
            unit=self.unit,
            skip_bad_files=self.skip_bad_files,
            cache_dir=cache_dir,
        )

    def _processors(self) -> dict[str | None, VolumeProcessor]:
        """Class -> processor without a grid; the only key is None for a model without classes."""
        if self.classes is not None:
            return _read_classes(Path(self.classes))
        processor = self.make_processor()
        if self.class_column is None:
            return {None: processor}
        assert self.train_data_dir is not None
        return dict.fromkeys(classes_of(self.train_data_dir, self.class_column, self.split), processor)


def parse_grids(text: str, classes: Sequence[str]) -> dict[str, list[Grid]]:
    """Grids of each class, in their order: ``"64;64,64,48"`` for all, ``"mr=64;ct=64,64,48"`` one by one.

    Raises:
        ValueError: If a class is unknown or has no grid, or a grid is no one or three numbers.
    """
    grids: dict[str, list[Grid]] = {name: [] for name in classes}
    for item in filter(None, map(str.strip, text.split(";"))):
        name, equals, numbers = item.rpartition("=")
        if equals and name.strip() not in grids:
            raise ValueError(f"--grids names the class {name.strip()!r}; the classes are {', '.join(classes)}.")
        grid = triple("grids", numbers, int)
        for chosen in [name.strip()] if equals else classes:
            if grid in grids[chosen]:
                raise ValueError(f"--grids has {numbers.strip()} twice for a class; name each grid once.")
            grids[chosen].append(grid)  # type: ignore[arg-type]
    without = [name for name, chosen in grids.items() if not chosen]
    if without:
        raise ValueError(
            f"--grids is {text!r}, which leaves {', '.join(filter(None, without)) or 'the volumes'} without a grid."
        )
    return grids


def _read_classes(path: Path) -> dict[str | None, VolumeProcessor]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--classes {path} is no JSON ({error}); write {{class: processor options}}.") from error
    if not isinstance(table, dict) or not table or not all(isinstance(value, dict) for value in table.values()):
        raise ValueError(f'--classes {path} is no table; write {{"ct": {{"intensity": "window", "low": -1000, ...}}}}.')
    return {name: VolumeProcessor.from_dict(options) for name, options in table.items()}
