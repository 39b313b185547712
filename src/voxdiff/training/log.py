"""The run's log: one JSON object a line, consistent with the step a run is resumed from."""

import json
from pathlib import Path
from typing import Any

from voxdiff.volumes import atomic_path


class TrainingLog:
    """Appends records to ``training_log.jsonl``.

    Args:
        path: The file.
        first_step: Records of later steps are dropped: the resumed run writes them again.
    """

    def __init__(self, path: Path, *, first_step: int = 0) -> None:
        self.path = path
        kept = [record for record in read_log(path) if record["step"] <= first_step]
        with atomic_path(path) as temporary:
            Path(temporary).write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, which must hold its ``step``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All records; a last line cut off by a kill is ignored."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
