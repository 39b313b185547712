import numpy as np
import pytest
import torch

from voxdiff import VolumeProcessor
from voxdiff.pipelines.resampling import resample_volume

PROCESSOR = VolumeProcessor(size=(8, 8, 6), spacing=(2, 2, 3), intensity="minmax")


def ramp(shape, spacing, axis):
    """World coordinate in mm along one axis about the centre, scaled to a tenth."""
    steps = (torch.arange(shape[axis]) - (shape[axis] - 1) / 2) * spacing[axis] / 10
    return steps.view([-1 if along == axis else 1 for along in range(3)]).expand(shape)[None].clone()


@pytest.mark.parametrize("spacing", [(1, 1, 1), (4, 4, 6), (1.5, 2, 2.5)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_lies_somewhere_stays_there(spacing, axis):
    volume, processor = resample_volume(ramp((8, 8, 6), (2, 2, 3), axis), PROCESSOR, spacing)
    shape = volume.shape[1:]
    extents = torch.tensor(shape) * torch.tensor(spacing)
    assert ((extents - torch.tensor([16, 16, 18])).abs() <= torch.tensor(spacing) / 2).all()
    assert processor.spacing == spacing and processor.size is None
    inner = (slice(None), *(slice(2, -2) if count > 4 else slice(1, -1) for count in shape))
    torch.testing.assert_close(volume[inner], ramp(shape, spacing, axis)[inner], atol=1e-5, rtol=0)


def test_the_same_spacing_changes_nothing():
    volume = torch.rand(2, 8, 8, 6)
    assert torch.equal(resample_volume(volume, PROCESSOR, (2, 2, 3))[0], volume)


def test_the_image_is_centred():
    volume, processor = resample_volume(torch.zeros(1, 8, 8, 6), PROCESSOR, (1, 2, 4))
    [image] = processor.postprocess(volume[None])
    assert image.shape == (16, 8, 4) and image.header.get_zooms() == (1.0, 2.0, 4.0)
    np.testing.assert_allclose(image.affine @ [7.5, 3.5, 1.5, 1], [0, 0, 0, 1], atol=1e-5)


def test_labels_are_not_mixed():
    processor = VolumeProcessor(size=(4, 4, 4), spacing=(1, 1, 1), intensity="labels", high=2)
    volume = torch.tensor([-1.0, 1.0]).repeat_interleave(2).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    assert set(resample_volume(volume, processor, (0.7, 1, 1))[0].unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("spacing", [(1, 1), (0, 1, 1), "1"])
def test_bad_spacings_raise(spacing):
    with pytest.raises(ValueError, match="three positive values in mm"):
        resample_volume(torch.zeros(1, 8, 8, 6), PROCESSOR, spacing)
