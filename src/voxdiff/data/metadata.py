"""What the metadata of a `niftifolder` data set say of its subjects besides their volumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_columns(folder: str | Path, columns: Sequence[str], *, split: str | None = None) -> dict[str, list[Any]]:
    """Values of metadata columns, in the order in which `find_subjects` lists the subjects.

    Args:
        folder: A folder with a ``metadata.csv`` (or ``.jsonl``).
        columns: Names of columns that are no volumes.
        split: Split of the data set; None is ``train``.

    Raises:
        ValueError: If the folder has no metadata, or they have no such column.
    """
    from datasets import Nifti, load_dataset

    if not any(next(Path(folder).rglob(name), None) for name in METADATA_FILES):
        raise ValueError(f"{folder} has no {METADATA_FILES[0]} to read {', '.join(columns)} from; add one.")
    split = {None: "train", "val": "validation"}.get(split, split)  # `datasets` calls a folder `val` so
    dataset = load_dataset("niftifolder", data_dir=str(folder), split=split)
    known = [name for name, feature in dataset.features.items() if not isinstance(feature, Nifti)]
    missing = [column for column in columns if column not in known]
    if missing:
        raise ValueError(
            f"The metadata of {folder} have no column {', '.join(missing)}; there are {', '.join(known) or 'none'}."
        )
    return {column: list(dataset[column]) for column in columns}
