from voxdiff.models.unet_widths import unet_widths


def test_every_map_of_the_encoder_enters_the_decoder_once():
    encoder, decoder = unet_widths((8, 16), 2)
    assert encoder == [[(8, 8), (8, 8)], [(8, 16), (16, 16)]]
    # maps: 8 (first convolution), 8, 8, 8 (halving), 16, 16
    assert decoder == [[(16 + 16, 16), (16 + 16, 16), (16 + 8, 16)], [(16 + 8, 8), (8 + 8, 8), (8 + 8, 8)]]


def test_one_level_has_no_halving():
    assert unet_widths([4], 1) == ([[(4, 4)]], [[(8, 4), (8, 4)]])
