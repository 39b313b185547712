"""Stages of one wave as batches of slices: cut out of the volumes of a call, and written back.

A batch holds all volumes of its first stage, then all volumes of the next: a volume's stages keep their order.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import torch

from voxdiff.pipelines.slice_stages import SliceStage


def batch_stages(stages: Sequence[SliceStage]) -> list[list[SliceStage]]:
    """Stages in the order of their waves; those of a wave with equally many targets and context share a batch."""
    batches: list[list[SliceStage]] = []
    for _, wave in itertools.groupby(stages, key=lambda stage: stage.wave):
        alike = defaultdict(list)
        for stage in wave:
            alike[len(stage.targets), len(stage.context)].append(stage)
        batches += alike.values()
    return batches


def cut_targets(stages: Sequence[SliceStage], volumes: torch.Tensor) -> torch.Tensor:
    """``(stages * batch, channels, x, y, targets)`` of volumes ``(batch, channels, x, y, slices)``."""
    return torch.cat([volumes[..., list(stage.targets)] for stage in stages])


def cut_context(stages: Sequence[SliceStage], volumes: torch.Tensor) -> torch.Tensor:
    """``(stages * batch, channels, x, y, context)`` of volumes ``(batch, channels, x, y, slices)``."""
    return torch.cat([volumes[..., list(stage.context)] for stage in stages])


def slot_positions(stages: Sequence[SliceStage], positions: torch.Tensor, batch: int) -> torch.Tensor:
    """Positions ``(stages * batch, context + targets)`` of the slots, the context's first; `positions` has one a slice."""
    rows = torch.stack([positions[list(stage.context + stage.targets)] for stage in stages])
    return rows.repeat_interleave(batch, dim=0)


def write_targets(stages: Sequence[SliceStage], made: torch.Tensor, volumes: torch.Tensor) -> None:
    """Write what :func:`cut_targets` would cut into the volumes, in place."""
    for stage, values in zip(stages, made.chunk(len(stages)), strict=True):
        volumes[..., list(stage.targets)] = values
