"""Decoding of volumes whose feature maps do not fit in memory, equal to the whole decode to rounding.

The decoder runs layer by layer over slabs along its first spatial axis. Convolutions read halos, group norms use the
statistics of the whole map, attention sees all voxels: there are no tiles, hence no seams. What a memory budget does not
let it store it computes again (3D MedDiffusion decodes above 256³ in separate tiles instead).
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from voxdiff.models.layers_autoencoder_3d import (
    Attention3D,
    AutoencoderMidBlock3D,
    AutoencoderResnetBlock3D,
    AutoencoderUpBlock3D,
    Decoder3D,
    Upsample3D,
    mid_layers,
)
from voxdiff.models.slab_maps import AttentionMap, ConvMap, InputMap, SlabMap, UpsampleMap
from voxdiff.models.slab_plan import SlabPass, SlabPlan, make_plan


class SlabDecoder:
    """A decoder within a memory budget, for inference.

    Args:
        decoder: The network; its modules are read, not changed.
        max_memory_gb: Memory that one call may allocate, in GiB (2**30 bytes), beside the weights and the latents that
            are there already. A GPU's context and its allocator's fragments come on top: leave a tenth of the card.

    Raises:
        ValueError: If ``max_memory_gb`` is not positive.
    """

    def __init__(self, decoder: Decoder3D, max_memory_gb: float) -> None:
        if not max_memory_gb > 0:
            raise ValueError(f"max_memory_gb is {max_memory_gb}; it must be a positive number of GiB.")
        self.decoder = decoder
        self.max_memory_gb = max_memory_gb

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> SlabPlan:
        """Say how latents of a shape would be decoded, without doing it.

        Args:
            shape: ``(batch, channels, d, h, w)`` in the network's axis order.
            dtype: Type of the latents and the weights.

        Raises:
            ValueError: If the budget is too small for any plan; the message names the smallest budget.
        """
        batch_size, channels, depth, height, width = shape
        maps = decoder_maps(self.decoder, InputMap(channels, (depth, height, width)))
        return make_plan(maps, int(self.max_memory_gb * 2**30), itemsize=dtype.itemsize, batch_size=batch_size)

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Decode ``(batch, channels, d, h, w)`` to ``(batch, out_channels, f*d, f*h, f*w)``, one sample after another.

        Raises:
            ValueError: If gradients are asked for, or the budget is too small.
        """
        if hidden.requires_grad:
            raise ValueError(
                "Slab decoding gives no gradients, but its input requires them: decode under torch.no_grad(), or call "
                "disable_slab_decoding()."
            )
        batch_size, channels, depth, height, width = hidden.shape
        plan = self.plan((batch_size, channels, depth, height, width), hidden.dtype)
        volumes = hidden.new_empty(0)
        for place, latents in enumerate(hidden.split(1)):
            maps = decoder_maps(self.decoder, InputMap(channels, (depth, height, width), latents))
            if place == 0:
                volumes = hidden.new_empty(batch_size, maps[-1].channels, *maps[-1].size)
            for step in plan.passes:
                run_pass(maps, step, volumes[place : place + 1])
        return volumes


def decoder_maps(decoder: Decoder3D, latents: SlabMap) -> list[SlabMap]:
    """Feature maps of a decoder in the order of computation, ``latents`` first and the volume last."""
    maps = [latents, ConvMap(latents, decoder.conv_in)]
    layers = mid_layers(cast("AutoencoderMidBlock3D", decoder.mid_block))
    for block in cast("Iterable[AutoencoderUpBlock3D]", decoder.up_blocks):
        layers += [*block.resnets, *block.upsamplers]
    for layer in layers:
        maps += layer_maps(layer, maps[-1])
    return [*maps, ConvMap(maps[-1], decoder.conv_out, norm=decoder.conv_norm_out)]


def layer_maps(layer: nn.Module, source: SlabMap) -> list[SlabMap]:
    """Feature maps of one layer of a decoder, the layer's output last.

    Raises:
        TypeError: If the layer is none that a :class:`Decoder3D` consists of.
    """
    if isinstance(layer, AutoencoderResnetBlock3D):
        hidden = ConvMap(source, layer.conv1, norm=layer.norm1)
        return [
            hidden,
            ConvMap(hidden, layer.conv2, norm=layer.norm2, residual=source, shortcut=layer.conv_shortcut),
        ]
    if isinstance(layer, Attention3D):
        return [AttentionMap(source, layer)]
    if isinstance(layer, Upsample3D):
        return [UpsampleMap(source, layer.conv)]
    raise TypeError(
        f"A decoder has a layer of class {type(layer).__name__}, which slab decoding does not know; it knows "
        "AutoencoderResnetBlock3D, Attention3D and Upsample3D: call disable_slab_decoding()."
    )


def run_pass(maps: list[SlabMap], step: SlabPass, result: torch.Tensor) -> None:
    """Compute a map slab by slab, measure it if a group norm follows it and store it if planned.

    Args:
        maps: All maps; those that the pass reads are stored or computed on the way.
        step: The pass.
        result: ``(1, channels, depth, height, width)``, where the last map is stored.
    """
    target = maps[step.index]
    buffer = _buffer(maps, step, result)
    target.prepare(step.rows)
    for start in range(0, target.depth, step.rows):
        slab = target.compute(start, min(start + step.rows, target.depth))
        if target.moments is not None:
            target.moments.update(slab)
        if buffer is not None:
            buffer[:, :, start : start + step.rows] = slab
        del slab
    target.buffer = buffer
    for map_ in maps:
        map_.forget()
    for index in step.frees:
        maps[index].buffer = None


def _buffer(maps: list[SlabMap], step: SlabPass, result: torch.Tensor) -> torch.Tensor | None:
    target = maps[step.index]
    if not step.stores:
        return None
    if target is maps[-1]:
        return result
    if step.in_place and isinstance(target, ConvMap) and target.residual is not None:
        return target.residual.buffer
    return result.new_empty(1, target.channels, *target.size)
