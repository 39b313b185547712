"""Arguments on the files, or the cohort, whose latents are learnt; what all latent diffusion has in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import refuse, triple
from voxdiff.volumes import VolumeProcessor


@dataclass
class EncodedDataArguments:
    """Where volumes come from, how files become volumes, and where their latents are kept.

    None means that an option was not given.
    """

    train_data_dir: str | None = option(None, "Folder of NIfTI files, or a niftifolder data set with metadata.csv.")
    cohort: str | None = option(None, "The simulated digital cohort instead.")
    split: str | None = option(None, "Split of the data set, or of the cohort (train, val, test); default: train.")
    num_subjects: int | None = option(None, "Subjects of the cohort, of each of its classes; default: 1000.")
    image_column: str | None = option(None, "Column of the volumes; default: image.")
    spacing: str | None = option(None, "Voxel size in mm: one number or x,y,z; default: the volumes' own.")
    intensity: str | None = option(None, "percentile (MR, the default), window (CT) or minmax.")
    low: float | None = option(None, "Lower percentile, or lower end of the window in HU.")
    high: float | None = option(None, "Upper percentile, or upper end of the window in HU.")
    unit: str | None = option(None, "State HU for CT volumes whose lowest value is not negative.")
    skip_bad_files: bool = option(False, "Train without the volumes that cannot be read.")
    cache_dir: str | None = option(
        None, "Where simulated subjects and prepared files are kept; default: OUTPUT_DIR/cache."
    )
    latents_dir: str | None = option(
        None,
        "Where the latents are kept; alone, it trains on those of an earlier run. Default: OUTPUT_DIR/cache/latents.",
    )

    def check_origin(self, *, of_files: Sequence[str], of_data: Sequence[str], example: str) -> None:
        """Raise ValueError, in one sentence, unless files, the cohort or latents alone were given with what is theirs.

        Args:
            of_files: Options that the cohort decides itself.
            of_data: Options that were decided when latents were encoded.
            example: A cohort to name where nothing was given.
        """
        if self.train_data_dir is not None and self.cohort is not None:
            raise ValueError("--train_data_dir and --cohort were both given; give one of them.")
        if self.cohort is not None:
            refuse(self, of_files, "belongs to --train_data_dir, the cohort has its own")
        elif self.train_data_dir is not None:
            refuse(self, ["num_subjects"], "belongs to --cohort")
        elif self.latents_dir is None:
            raise ValueError(
                f"Give the training data: --train_data_dir DIR with NIfTI files, --cohort {example} for the simulated "
                "cohort, or the --latents_dir DIR of an earlier run."
            )
        else:
            refuse(self, of_data, "was decided when the latents were encoded")
        if self.skip_bad_files and self.train_data_dir is None:
            raise ValueError("--skip_bad_files belongs to --train_data_dir; leave it out.")

    @property
    def are_encoded(self) -> bool:
        """Whether only latents were given, no volumes."""
        return self.train_data_dir is None and self.cohort is None

    @property
    def number_of_subjects(self) -> int:
        """Of the cohort."""
        return 1000 if self.num_subjects is None else self.num_subjects

    def make_processor(self, size: tuple[int, ...] | None = None) -> VolumeProcessor:
        """The processor of files, on a grid or the files' own."""
        return VolumeProcessor(
            size=size,
            spacing=triple("spacing", self.spacing, float),
            intensity=self.intensity or "percentile",
            low=self.low,
            high=self.high,
        )
