"""Subgroups of both sets, by a column of their metadata.csv: is the generator as good for everyone?"""

import csv
from collections import Counter
from pathlib import Path

from voxdiff.metrics.volume_sets import VolumeSet


def find_subgroups(column: str, real: VolumeSet, synthetic: VolumeSet) -> dict[str, tuple[list[int], list[int]]]:
    """Places of the real and of the synthetic volumes by the value of a column, for values that both sets have.

    :func:`one_sided` names the others.

    Raises:
        FileNotFoundError: a folder has no metadata.csv.
        ValueError: it lacks the column or a volume, or the sets share no value.
    """
    values = [_column(volumes, column) for volumes in (real, synthetic)]
    shared = sorted({*values[0]} & {*values[1]})
    if not shared:
        raise ValueError(
            f"The column {column!r} has no value in common between {real.folder} ({', '.join(sorted({*values[0]}))}) "
            f"and {synthetic.folder} ({', '.join(sorted({*values[1]}))}); use the same values."
        )
    places = [{value: [i for i, v in enumerate(found) if v == value] for value in shared} for found in values]
    return {value: (places[0][value], places[1][value]) for value in shared}


def one_sided(column: str, real: VolumeSet, synthetic: VolumeSet) -> list[str]:
    """One sentence for each value of a column that only one of the sets has; errors as for :func:`find_subgroups`."""
    counts = [Counter(_column(volumes, column)) for volumes in (real, synthetic)]
    return [
        f"The subgroup {column} {value} has {counts[0][value]} of the {len(real)} real and {counts[1][value]} of the "
        f"{len(synthetic)} synthetic volumes: only one set has it, so that it is not measured."
        for value in sorted({*counts[0]} ^ {*counts[1]})
    ]


def _column(volumes: VolumeSet, column: str) -> list[str]:
    """The column's value of each volume."""
    by_file: dict[Path, str] = {}
    for table in sorted(volumes.folder.rglob("metadata.csv")):
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if column not in row:
                    raise ValueError(f"{table} has no column {column!r}; it has {', '.join(row)}.")
                files = [value for name, value in row.items() if name.endswith("file_name") and value]
                by_file |= {(table.parent / name).resolve(): str(row[column]) for name in files}
    if not by_file:
        raise FileNotFoundError(
            f"{volumes.folder} holds no metadata.csv; add one with file_name and {column}, or drop the subgroup."
        )
    missing = [path for path in volumes.paths if path.resolve() not in by_file]
    if missing:
        raise ValueError(f"The metadata.csv below {volumes.folder} does not list {missing[0].name}; add its row.")
    return [by_file[path.resolve()] for path in volumes.paths]
