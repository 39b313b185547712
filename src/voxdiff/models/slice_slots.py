"""A set of slices as a network gets it: slots that hold a known slice, a noisy target or padding."""

import torch


def check_slots(
    sample: torch.Tensor,
    positions: torch.Tensor,
    known_slices: torch.Tensor | None,
    known: torch.Tensor | None,
    valid: torch.Tensor | None,
) -> None:
    """Raise ValueError unless all that describes the slots of ``sample`` ``(batch, channels, x, y, slots)`` fits it."""
    if (known is None) != (known_slices is None):
        missing = "known, which says where they are" if known is None else "known_slices, the slices themselves"
        raise ValueError(
            f"The U-Net is missing {missing}; give known_slices and known, or neither if nothing is known."
        )
    expected = (sample.shape[0], sample.shape[-1])
    for name, values in (("positions", positions), ("known", known), ("valid", valid)):
        if values is not None and tuple(values.shape) != expected:
            raise ValueError(
                f"The U-Net got {name} of shape {tuple(values.shape)}; pass {expected}, one value a slot of each sample."
            )
    if known_slices is not None and known_slices.shape != sample.shape:
        raise ValueError(
            f"The known slices have the shape {tuple(known_slices.shape)}, but the noisy ones {tuple(sample.shape)}; pass "
            "tensors of one shape, with anything in the slots that are not known."
        )
    _check_distinct(positions, valid)


def _check_distinct(positions: torch.Tensor, valid: torch.Tensor | None) -> None:
    """Raise ValueError if two slots of a sample are one slice, or a position is no number.

    In a compiled network and on a GPU, where the answer would have to be waited for, RuntimeError later than the call.
    """
    same = (positions[:, :, None] == positions[:, None, :]).triu(1)
    if valid is not None:
        same &= valid.bool()[:, :, None] & valid.bool()[:, None, :]
    distinct = positions.isfinite().all() & ~same.any()
    message = "The U-Net got one position for two slots of a sample, or one that is not finite; name each slice once."
    if torch.compiler.is_compiling() or distinct.device.type != "cpu":
        torch._assert_async(distinct, message)
    elif not distinct:
        raise ValueError(message)


def join_known(sample: torch.Tensor, known_slices: torch.Tensor | None, known: torch.Tensor | None) -> torch.Tensor:
    """Put clean slices where they are known, noisy ones elsewhere, and which is which into a channel behind them."""
    if known_slices is None or known is None:
        return torch.cat([sample, torch.zeros_like(sample[:, :1])], dim=1)
    mask = known.bool()[:, None, None, None, :]
    indicator = mask.to(sample.dtype).expand_as(sample[:, :1])
    return torch.cat([torch.where(mask, known_slices, sample), indicator], dim=1)


def interpolate_known(
    sample: torch.Tensor, positions: torch.Tensor, known_slices: torch.Tensor | None, known: torch.Tensor | None
) -> torch.Tensor:
    """What linear interpolation of the known slices gives in every slot, and how near the next known slice is.

    Beyond the outermost known slice it is that slice.

    Args:
        sample: Noisy slices ``(batch, channels, x, y, slots)``, of which only the shape counts.
        positions: ``(batch, slots)`` in slices.
        known_slices: Clean slices of the same shape; None: nothing is known.
        known: ``(batch, slots)``, 1 or True for the known slots.

    Returns:
        ``(batch, channels + 1, x, y, slots)``, the last channel ``1 / (1 + distance)``; zero where nothing is known.
    """
    if known_slices is None or known is None:
        return torch.zeros_like(torch.cat([sample, sample[:, :1]], dim=1))
    weights, distance = interpolation_weights(positions, known)
    shown = known_slices.masked_fill(~known.bool()[:, None, None, None, :], 0)
    interpolated = torch.einsum("bcxyj,bij->bcxyi", shown, weights.to(shown.dtype))
    nearness = (1 / (1 + distance)).to(shown.dtype)[:, None, None, None, :].expand_as(shown[:, :1])
    return torch.cat([interpolated, nearness], dim=1)


def interpolation_weights(positions: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How linear interpolation puts together a slice at every slot's position from the known slices.

    Args:
        positions: ``(batch, slots)`` in slices.
        known: ``(batch, slots)``, 1 or True for the known slots.

    Returns:
        ``(batch, slots, slots)`` in float32: at ``[:, i, j]`` the weight of slot j for slot i, 0 where nothing is known;
        and the distance to the nearest known slice ``(batch, slots)``, infinite where there is none.
    """
    distance = positions.float()[:, :, None] - positions.float()[:, None, :]
    given = known.bool()[:, None, :]
    below, nearest_below = distance.masked_fill(~given | (distance < 0), torch.inf).min(dim=2)
    above, nearest_above = (-distance).masked_fill(~given | (distance > 0), torch.inf).min(dim=2)
    gap = below + above
    share = torch.where(above.isinf() | (gap == 0), 0.0, below / gap)  # of the slice above
    share = torch.where(below.isinf(), 1.0, share)[..., None]
    weights = torch.zeros_like(distance).scatter_add(2, nearest_above[..., None], share)
    weights = weights.scatter_add(2, nearest_below[..., None], 1 - share)
    return given.any(dim=2, keepdim=True) * weights, torch.minimum(below, above)


def target_slots(
    known: torch.Tensor | None, valid: torch.Tensor | None, num_targets: int | None = None
) -> torch.Tensor | None:
    """Find the slots that are neither known nor padding.

    Args:
        known: ``(batch, slots)``, 1 or True for the known slots; None: nothing is known.
        valid: ``(batch, slots)``, 0 or False for padding; None: no padding.
        num_targets: How many there are, where the caller knows: the size of the result then depends on no tensor.

    Returns:
        Their indices out of ``batch * slots``, in order; None if all slots are targets.

    Raises:
        RuntimeError: If there are not ``num_targets`` of them; on a GPU it may come later than the call.
    """
    excluded = [flags for flags in (known, None if valid is None else ~valid.bool()) if flags is not None]
    if not excluded:
        return None
    target = ~torch.stack([flags.bool() for flags in excluded]).any(0).flatten()
    if num_targets is None:
        return target.nonzero()[:, 0]
    torch._assert_async(
        target.sum() == num_targets,
        "num_targets is not the number of slots that are neither known nor padding; count them again.",
    )
    return torch.argsort((~target).byte(), stable=True)[:num_targets]
