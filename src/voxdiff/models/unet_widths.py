"""Channels of the layers of a U-Net whose decoder takes every map of its encoder."""

from collections.abc import Sequence

Widths = list[list[tuple[int, int]]]
"""Level -> channels in and out of each of its layers."""


def unet_widths(block_out_channels: Sequence[int], layers_per_block: int) -> tuple[Widths, Widths]:
    """Widths of the encoder, the finest level first, and of the decoder, the coarsest first.

    A decoder level has one layer more; each takes the latest map that is left, of the first convolution, of a layer or of
    a halving, beside its input.
    """
    encoder: Widths = []
    maps = [block_out_channels[0]]
    width = block_out_channels[0]
    for level, out_width in enumerate(block_out_channels):
        encoder.append([(width, out_width), *[(out_width, out_width)] * (layers_per_block - 1)])
        halves = level < len(block_out_channels) - 1
        maps += [out_width] * (layers_per_block + halves)
        width = out_width
    decoder: Widths = []
    for out_width in reversed(block_out_channels):
        decoder.append([])
        for _ in range(layers_per_block + 1):
            decoder[-1].append((width + maps.pop(), out_width))
            width = out_width
    return encoder, decoder
