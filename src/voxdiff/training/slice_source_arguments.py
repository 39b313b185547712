"""Arguments on the volumes and masks that informed slices are learnt from."""

from dataclasses import dataclass
from pathlib import Path

from voxdiff.pipelines.mask_values import linear_mask_values
from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import names, triple
from voxdiff.training.encoded_data_arguments import EncodedDataArguments
from voxdiff.training.slice_sources import MASKED_COHORTS, SliceSource, cohort_slice_source, file_slice_source

_OF_FILES = ("image_column", "mask_column", "mask_values", "spacing", "intensity", "low", "high", "unit")
_OF_DATA = ("split", "num_subjects", "resolution", "cache_dir", *_OF_FILES)


@dataclass
class SliceSourceArguments(EncodedDataArguments):
    """The volumes and masks, and how they are brought to one grid.

    None means that an option was not given.
    """

    cohort: str | None = option(
        None,
        f"The simulated digital cohort instead: {', '.join(MASKED_COHORTS)} (brains with tumours, CT with organs).",
    )
    resolution: str | None = option(None, "Grid of the volumes: one number or x,y,z; default: the volumes' own.")
    mask_column: str | None = option(None, "Column of the masks; default: mask.")
    mask_values: str | None = option(
        None,
        "What the networks see for each label of the masks: 0=-1,1=0,2=1, or the highest label alone, which spreads the "
        "labels from -1 to 1 in their order.",
    )

    def __post_init__(self) -> None:
        self.check_origin(of_files=_OF_FILES, of_data=_OF_DATA, example="flair")
        if self.cohort is not None:
            if self.cohort not in MASKED_COHORTS:
                raise ValueError(f"--cohort is {self.cohort!r}; choose one of {', '.join(MASKED_COHORTS)}.")
            if self.resolution is None:
                raise ValueError("The cohort is drawn on the grid that you choose; give --resolution, such as 64.")
        elif self.train_data_dir is not None and self.mask_values is None:
            raise ValueError("Give --mask_values: the highest label of the masks, or a table such as 0=-1,1=0,2=1.")

    def make_source(self, cache_dir: Path) -> tuple[SliceSource, list[str]]:
        """The volumes with their masks.

        Args:
            cache_dir: Where simulated subjects and prepared files are kept.

        Returns:
            The source, and a sentence for each subject that was left out.

        Raises:
            OSError, ValueError: If the data are missing or do not fit.
        """
        grid = triple("resolution", self.resolution, int)
        if self.cohort is not None:
            assert grid is not None
            return cohort_slice_source(
                self.cohort, grid, cache_dir, num_subjects=self.number_of_subjects, split=self.split or "train"
            ), []
        assert self.train_data_dir is not None and self.mask_values is not None
        processor = self.make_processor(grid)
        if self.unit is not None and processor.unit != "HU":
            raise ValueError(f"--unit {self.unit} belongs to volumes in HU (--intensity window); leave it out.")
        return file_slice_source(
            self.train_data_dir,
            processor,
            parse_mask_values(self.mask_values),
            image_column=self.image_column or "image",
            mask_column=self.mask_column or "mask",
            split=self.split,
            unit=self.unit,
            skip_bad_files=self.skip_bad_files,
            cache_dir=cache_dir,
        )

    def describe(self, count: int) -> str:
        """What a model card says of the data."""
        if self.cohort is not None:
            masks = "organs" if self.cohort == "ct" else "tumours"
            return (
                f"{count} subjects of voxdiff's simulated cohort ({self.cohort} with masks of {masks}); no real patient "
                "is in it"
            )
        folder = self.train_data_dir or self.latents_dir or ""
        return f"{count} subjects of the folder `{Path(folder).resolve().name}`"


def parse_mask_values(text: str) -> dict[int, float]:
    """The table of ``0=-1,1=0,2=1``, or of the highest label alone.

    Raises:
        ValueError: If it is neither, or names a label twice.
    """
    if text.strip().isdecimal():
        return linear_mask_values(int(text))
    table: dict[int, float] = {}
    for item in names(text):
        label, _, value = item.partition("=")
        try:
            key, number = int(label), float(value)
        except ValueError as error:
            raise ValueError(f"--mask_values has {item!r}; write LABEL=VALUE, such as 1=0.5.") from error
        if key in table:
            raise ValueError(f"--mask_values has the label {key} twice; name each once.")
        table[key] = number
    return table
