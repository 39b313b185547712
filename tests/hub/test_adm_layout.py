import pytest
import torch

from voxdiff.hub.adm_layout import read_depth


def state_dict(blocks, upsampling):
    keys = [f"output_blocks.{block}.0.in_layers.0.weight" for block in range(blocks)]
    keys += [f"output_blocks.{block}.1.conv.weight" for block in upsampling]
    return {key: torch.zeros(1) for key in keys}


def test_levels_and_layers_are_counted():
    assert read_depth(state_dict(9, [2, 5]), r"1\.conv\.") == (3, 2)
    assert read_depth(state_dict(4, [1]), r"[12]\.conv\.") == (2, 1)


@pytest.mark.parametrize(("blocks", "upsampling"), [(8, [2, 5]), (2, [0])])
def test_unequal_levels_are_refused(blocks, upsampling):
    with pytest.raises(ValueError, match=r"does not make \d equal levels"):
        read_depth(state_dict(blocks, upsampling), r"1\.conv\.")
