"""Where a slice lies in its volume, and how the informed-slice generator of GEM-3D is told (arXiv 2403.12852)."""

import torch
from diffusers.models.embeddings import get_timestep_embedding

POSITION_RULES = ("inclusive", "official")


def slice_position(index: int, depth: int, rule: str = "inclusive") -> float:
    """Relative position of an axial slice in a volume of ``depth`` slices.

    Args:
        index: Slice, counted from 0.
        depth: Number of slices of the volume.
        rule: ``"inclusive"`` runs from 0 to 1 (a single slice lies at 0); ``"official"`` is ``index / depth``, as the
            published generator was trained, and never 1.

    Raises:
        ValueError: On an unknown rule or a slice outside the volume.
    """
    if rule not in POSITION_RULES:
        raise ValueError(f"The position rule is {rule!r}; allowed are {', '.join(POSITION_RULES)}.")
    if not 0 <= index < depth:
        raise ValueError(f"Slice {index} lies outside a volume of {depth} slices; choose one from 0 to {depth - 1}.")
    return index / (max(depth - 1, 1) if rule == "inclusive" else depth)


def position_context(positions: torch.Tensor, dim: int = 128) -> torch.Tensor:
    """Embed positions as the context of a ``UNet2DConditionModel`` of width ``cross_attention_dim=dim``.

    Cosines, then sines, of 1000 times the position, with periods up to 10000. Attention over this single token adds
    the same vector to every pixel, as the official network does.

    Args:
        positions: ``(batch,)`` relative positions in [0, 1].
        dim: Width of the context.

    Returns:
        ``(batch, 1, dim)`` in float32.
    """
    return get_timestep_embedding(1000 * positions, dim, flip_sin_to_cos=True, downscale_freq_shift=0)[:, None]
