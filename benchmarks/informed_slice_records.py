"""Measurements of sets, kept by name so that a killed benchmark goes on: numbers as JSON, features as safetensors."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from informed_slice_measures import Reference, measure_cases, measure_diversity, plane_features
from safetensors.numpy import load_file, save_file

from voxdiff.volumes import atomic_path


def measured_set(
    folder: Path,
    name: str,
    volumes: Callable[[], list[torch.Tensor]],
    cases: Sequence[str],
    reference: Reference,
    *,
    seams: Sequence[int] = (),
    paired: bool = False,
    protocol: Mapping[str, Any] | None = None,
    describe: bool = True,
) -> dict[str, Any]:
    """The measurements of a set, made unless they are in the folder.

    Args:
        folder: That keeps them, in its folder ``measured``.
        name: Of the set.
        volumes: Makes or reads the volumes ``(1, x, y, z)`` in [0, 1].
        cases: Whose mask each volume has.
        reference: Of the real volumes of the same masks.
        seams: See :func:`informed_slice_measures.measure_cases`.
        paired: The same.
        protocol: What the numbers depend on beside name and cases, such as the model.
        describe: Whether more than the features is measured.

    Returns:
        ``features``, and what was described: ``cases``, ``diversity`` and ``cpu_seconds``.

    Raises:
        ValueError: If they were measured with another protocol.
    """
    path = folder / "measured" / f"{name}.json"
    wanted = {"cases": list(cases), **(protocol or {})}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["protocol"] != wanted:
            raise ValueError(f"{path} was measured on another model or other cases; give another folder with --runs.")
        return record | {"features": load_file(path.with_suffix(".safetensors"))}
    started, found = time.process_time(), volumes()
    features = {plane: values.astype(np.float32) for plane, values in plane_features(found).items()}
    record: dict[str, Any] = {"protocol": wanted}
    if describe:
        record["cases"] = measure_cases(found, cases, seams, reference, paired=paired)
        record["diversity"] = measure_diversity(found)
    record["cpu_seconds"] = time.process_time() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, atomic_path(path.with_suffix(".safetensors")) as tensors:
        save_file(features, tensors)
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record | {"features": features}
