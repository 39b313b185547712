"""Feature maps of a 3D decoder that are computed a few rows at a time and equal the whole map to rounding.

A *row* is one index along the network's first spatial axis: ``(1, channels, 1, height, width)``; a *slab* is some rows
in succession. A map is either stored, or its rows are computed from its sources' rows whenever they are asked for.
"""

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_autoencoder_3d import Attention3D

CHANNEL_BLOCK = 16


class GroupMoments:
    """Mean and variance of a map's channel groups, gathered slab by slab.

    The slabs' means and sums of squared deviations are combined as in Chan, Golub & LeVeque (1983) in double precision,
    so that no difference of large sums occurs; one slab is reduced in at least single precision.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, slab: torch.Tensor) -> None:
        """Take in ``(1, channels, rows, height, width)``; a 16-bit slab is widened one row at a time."""
        parts = slab.split(1, dim=2) if slab.element_size() < 4 else (slab,)
        for part in parts:
            part = part.float() if part.element_size() < 4 else part
            groups = part.unflatten(1, (self.num_groups, -1))
            variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4, 5), correction=0)
            self._combine(part.numel() // self.num_groups, mean.double(), variance.double())

    def _combine(self, count: int, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.count == 0:
            self.count, self._mean, self._squares = count, mean, variance * count
            return
        total = self.count + count
        shift = mean - self._mean
        self._squares = self._squares + variance * count + shift.square() * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def normalize(self, slab: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
        """Apply ``norm`` with the gathered statistics to a slab; the arithmetic is at least single precision."""
        dtype = torch.promote_types(slab.dtype, torch.float32)
        repeats = norm.num_channels // self.num_groups
        mean, variance = (
            value.to(dtype).repeat_interleave(repeats) for value in (self._mean, self._squares / self.count)
        )
        # a batch norm with known statistics is exactly the affine step of a group norm, and takes 16-bit slabs
        return F.batch_norm(slab, mean, variance, norm.weight.to(dtype), norm.bias.to(dtype), False, 0.0, norm.eps)


def convolve(slab: torch.Tensor, conv: nn.Conv3d, padding: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """Apply a convolution of stride 1 with another padding than its own."""
    if slab.device.type == "cpu" and slab.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # for one small sample F.conv3d would unfold the slab into 27 copies on a CPU
        ones = (1, 1, 1)
        return torch.mkldnn_convolution(slab, conv.weight, conv.bias, padding, ones, ones, 1)
    return F.conv3d(slab, conv.weight, conv.bias, padding=padding)


class SlabMap:
    """A map ``(1, channels, depth, height, width)`` whose rows can be had in any slabs.

    Args:
        channels: Channels of the map.
        size: ``(depth, height, width)``, the slabs lie along depth.
        sources: Maps that this one is computed from.

    Attributes:
        buffer: The whole map while it is stored, else ``None``.
        moments: Statistics of the map, if a group norm follows it.
        halo: Rows of a source that one row needs at either side, where map and source have the same size.
    """

    halo = 0

    def __init__(self, channels: int, size: tuple[int, int, int], sources: tuple["SlabMap", ...] = ()) -> None:
        self.channels = channels
        self.size = size
        self.sources = sources
        self.buffer: torch.Tensor | None = None
        self.moments: GroupMoments | None = None
        self._held: torch.Tensor | None = None
        self._held_start = 0

    def measured(self, num_groups: int) -> GroupMoments:
        """Ask for statistics of channel groups; what computes all rows in order has to gather them."""
        self.moments = GroupMoments(num_groups)
        return self.moments

    @property
    def depth(self) -> int:
        """Number of rows."""
        return self.size[0]

    @property
    def row_elements(self) -> int:
        """Numbers in one row."""
        return self.channels * self.size[1] * self.size[2]

    def copied_elements(self, rows: int) -> int:
        """Numbers in some rows and in a convolution library's copy of them, whose channels come in blocks of 16."""
        blocked = -(-self.channels // CHANNEL_BLOCK) * CHANNEL_BLOCK
        return rows * (self.channels + blocked) * self.size[1] * self.size[2]

    def multiply_adds(self) -> int:
        """Multiply-adds of computing the map once from its sources."""
        raise NotImplementedError

    def transient_elements(self, rows: int) -> int:
        """Numbers that computing ``rows`` rows holds at the same time beside the sources' rows, the result included."""
        raise NotImplementedError

    def compute(self, start: int, stop: int) -> torch.Tensor:
        """Compute rows ``start`` to ``stop`` from the sources; the result is the caller's own."""
        raise NotImplementedError

    def prepare(self, rows: int) -> None:
        """Compute what every slab of the next pass needs, ``rows`` rows at a time."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop``, to be read only.

        What was computed last is held: of a slab's rows the next one asks for the end again, for its halo.
        """
        if self.buffer is not None:
            return self.buffer[:, :, start:stop]
        held, held_start = self._held, self._held_start
        held_stop = held_start + (0 if held is None else held.shape[2])
        if held is None or not held_start <= start <= held_stop:
            self._held = held = None
            held, held_start = self.compute(start, stop), start
        elif stop > held_stop:
            # a copy of the end, so that the rest is freed before the new rows are computed
            self._held = held = held[:, :, start - held_start :].clone()
            held, held_start = torch.cat([held, self.compute(held_stop, stop)], dim=2), start
        self._held, self._held_start = held, held_start
        return held[:, :, start - held_start : stop - held_start]

    def forget(self) -> None:
        """Drop the rows held and what :meth:`prepare` computed; what is stored stays."""
        self._held = None


class InputMap(SlabMap):
    """A tensor ``(1, channels, depth, height, width)`` that is there from the start."""

    def __init__(self, channels: int, size: tuple[int, int, int], tensor: torch.Tensor | None = None) -> None:
        super().__init__(channels, size)
        self.buffer = tensor


class ConvMap(SlabMap):
    """[Group norm, SiLU,] convolution of odd kernel, stride 1 and same padding [plus a residual map].

    Args:
        source: Map that is normalised and convolved.
        conv: The convolution.
        norm: Group norm of the source, followed by SiLU.
        residual: Map to add, through ``shortcut`` (a 1x1x1 convolution) if given.
        shortcut: See ``residual``.
    """

    def __init__(
        self,
        source: SlabMap,
        conv: nn.Conv3d,
        *,
        norm: nn.GroupNorm | None = None,
        residual: SlabMap | None = None,
        shortcut: nn.Conv3d | None = None,
    ) -> None:
        super().__init__(conv.out_channels, source.size, (source,) if residual is None else (source, residual))
        self.source, self.conv, self.norm, self.residual, self.shortcut = source, conv, norm, residual, shortcut
        self.halo = conv.kernel_size[0] // 2
        self.source_moments = None if norm is None else source.measured(norm.num_groups)

    def multiply_adds(self) -> int:
        """See :class:`SlabMap`."""
        weights = self.conv.weight.numel() + (0 if self.shortcut is None else self.shortcut.weight.numel())
        return weights * self.size[0] * self.size[1] * self.size[2]

    def transient_elements(self, rows: int) -> int:
        """See :class:`SlabMap`: operands and result of the convolution, each once more in the library's layout."""
        read, written = min(rows + 2 * self.halo, self.depth), min(rows + self.halo, self.depth)
        elements = self.source.copied_elements(read) + self.copied_elements(written) + self.conv.weight.numel()
        if self.residual is None or self.shortcut is None:
            return elements
        added = self.residual.copied_elements(rows) + self.copied_elements(rows)
        return max(elements, written * self.row_elements + added)

    def compute(self, start: int, stop: int) -> torch.Tensor:
        """See :class:`SlabMap`."""
        first, last = max(start - self.halo, 0), min(stop + self.halo, self.depth)
        hidden = self.source.rows(first, last)
        if self.norm is not None and self.source_moments is not None:
            hidden = F.silu(self.source_moments.normalize(hidden, self.norm), inplace=True)
        # rows are padded where the slab meets an end of the map; at the other side of such a slab they are dropped
        padded = self.halo if start < self.halo or stop > self.depth - self.halo else 0
        hidden = convolve(hidden, self.conv, padding=(padded, self.halo, self.halo))
        hidden = hidden.narrow(2, start - first - (self.halo - padded), stop - start)
        if self.residual is None:
            return hidden
        residual = self.residual.rows(start, stop)
        return hidden.add_(residual if self.shortcut is None else convolve(residual, self.shortcut))


class UpsampleMap(SlabMap):
    """Transposed convolution of kernel 4, stride 2 and padding 1: twice the rows, the height and the width."""

    def __init__(self, source: SlabMap, conv: nn.ConvTranspose3d) -> None:
        depth, height, width = source.size
        super().__init__(conv.out_channels, (2 * depth, 2 * height, 2 * width), (source,))
        self.source, self.conv = source, conv

    def multiply_adds(self) -> int:
        """See :class:`SlabMap`."""
        return self.conv.weight.numel() * self.source.size[0] * self.source.size[1] * self.source.size[2]

    def transient_elements(self, rows: int) -> int:
        """See :class:`SlabMap`: as a convolution; oneDNN was seen to hold the result three times."""
        read, written = min(rows // 2 + 2, self.source.depth), rows + 2
        blocked = self.copied_elements(written) - written * self.row_elements
        return self.source.copied_elements(read) + self.copied_elements(written) + blocked + self.conv.weight.numel()

    def compute(self, start: int, stop: int) -> torch.Tensor:
        """See :class:`SlabMap`. Row o of the result is made of rows (o - 2) / 2 to (o + 1) / 2 of the source."""
        first, last = max((start - 1) // 2, 0), min(stop // 2 + 1, self.source.depth)
        # a transposed convolution's padding drops rows of its result: those that lack a source row are never computed
        surplus = start - 2 * first, 2 * last - stop
        padding = 1 + min(surplus)
        hidden = F.conv_transpose3d(
            self.source.rows(first, last), self.conv.weight, self.conv.bias, stride=2, padding=(padding, 1, 1)
        )
        return hidden.narrow(2, surplus[0] - min(surplus), stop - start)


class AttentionMap(SlabMap):
    """Self-attention over all voxels of a stored map, plus that map: a slab of queries against all keys and values.

    Args:
        source: Map that is normalised and attended to; it must be stored.
        attention: The attention, whose residual is added here.
    """

    def __init__(self, source: SlabMap, attention: Attention3D) -> None:
        super().__init__(source.channels, source.size, (source,))
        self.source, self.attention = source, attention
        self.inner = attention.to_q.out_features
        self.source_moments = source.measured(attention.group_norm.num_groups)
        self._keys = self._values = torch.empty(0)

    def multiply_adds(self) -> int:
        """See :class:`SlabMap`."""
        voxels = self.size[0] * self.size[1] * self.size[2]
        return voxels * (2 * voxels + 4 * self.channels) * self.inner

    def prepared_elements(self) -> int:
        """Numbers in the keys and values of all voxels."""
        return 2 * self.inner * self.size[0] * self.size[1] * self.size[2]

    def transient_elements(self, rows: int) -> int:
        """See :class:`SlabMap`: copies of the rows in and out, and queries, their heads and the attended values."""
        return 4 * rows * self.row_elements + 3 * rows * self.inner * self.size[1] * self.size[2]

    def prepare(self, rows: int) -> None:
        """Compute keys and values of all voxels."""
        plane, heads = self.size[1] * self.size[2], self.attention.num_heads
        shape = 1, heads, self.depth * plane, self.inner // heads
        self._keys, self._values = (projection.weight.new_empty(shape) for projection in self._projections())
        for start in range(0, self.depth, rows):
            tokens = self._tokens(start, min(start + rows, self.depth))
            place = slice(start * plane, start * plane + tokens.shape[1])
            for projection, projected in zip(self._projections(), (self._keys, self._values), strict=True):
                projected[:, :, place] = self._split(projection(tokens))

    def compute(self, start: int, stop: int) -> torch.Tensor:
        """See :class:`SlabMap`."""
        queries = self._split(self.attention.to_q(self._tokens(start, stop)))
        attended = F.scaled_dot_product_attention(queries, self._keys, self._values)
        hidden = self.attention.to_out[0](attended.transpose(1, 2).flatten(2))
        rows = self.source.rows(start, stop)
        return hidden.transpose(1, 2).reshape(rows.shape).add_(rows)

    def forget(self) -> None:
        """See :class:`SlabMap`."""
        super().forget()
        self._keys = self._values = torch.empty(0)

    def _projections(self) -> tuple[nn.Linear, nn.Linear]:
        return self.attention.to_k, self.attention.to_v

    def _tokens(self, start: int, stop: int) -> torch.Tensor:
        hidden = self.source_moments.normalize(self.source.rows(start, stop), self.attention.group_norm)
        return hidden.flatten(2).transpose(1, 2)

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(2, (self.attention.num_heads, -1)).transpose(1, 2)
