import pytest
import torch
from autoencoder_runs import make_noise

from voxdiff.training.random_crops import RandomCrops


def coordinates(size=(6, 5, 4)):
    """A volume whose channels are its own x, y and z."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in size], indexing="ij"))[None]


def test_a_crop_is_a_connected_part_at_a_drawn_place():
    corners = set()
    for seed in range(60):
        (crop,) = RandomCrops((4, 3, 4), augment=False)(coordinates(), make_noise(1, seed))
        corner = crop[:, 0, 0, 0]
        assert torch.equal(crop, coordinates((4, 3, 4))[0] + corner.view(3, 1, 1, 1))
        corners.add(tuple(corner.int().tolist()))
    assert corners == {(x, y, 0) for x in range(3) for y in range(3)}


def test_each_sample_has_its_own_stream():
    volumes = coordinates().repeat(3, 1, 1, 1, 1)
    crops = RandomCrops((2, 2, 2))
    together = crops(volumes, make_noise(3))
    alone = make_noise(3)
    alone.generators = alone.generators[2:]
    assert torch.equal(together[2:], crops(volumes[2:], alone))
    assert len({crop.sum().item() for crop in together}) > 1


def test_several_crops_of_a_volume_follow_each_other():
    volumes = torch.cat([coordinates(), coordinates() + 100])
    crops = RandomCrops((2, 2, 2), augment=False, count=3)(volumes, make_noise(2))
    assert crops.shape == (6, 3, 2, 2, 2)
    assert (crops[:3] < 100).all() and (crops[3:] >= 100).all()
    assert len({tuple(crop[:, 0, 0, 0].tolist()) for crop in crops}) > 3


def test_an_empty_place_is_drawn_again():
    volume = torch.full((1, 1, 16, 16, 16), -1.0)
    volume[..., 8, 8, 8] = 1.0
    crops = [RandomCrops((8, 8, 8))(volume, make_noise(1, seed)) for seed in range(20)]
    assert sum(crop.max().item() == 1.0 for crop in crops) > 15  # 4 of 10 hold it by chance
    assert RandomCrops((8, 8, 8))(torch.zeros_like(volume), make_noise(1)).shape[2:] == (8, 8, 8)


def test_augmentation_mirrors_and_turns_in_the_axial_plane_only():
    volume = coordinates((4, 4, 3))
    seen = {tuple(RandomCrops(None)(volume, make_noise(1, seed))[0, :2, 0, 0, 0].int().tolist()) for seed in range(60)}
    first = {RandomCrops(None)(volume, make_noise(1, seed))[0, :, 0, 0, 0] for seed in range(8)}
    assert seen == {(0, 0), (0, 3), (3, 0), (3, 3)}
    assert all(corner[2] == 0 for corner in first)
    turned = [RandomCrops(None)(volume, make_noise(1, seed))[0, 0] for seed in range(20)]
    assert any((item[:, 0, 0] == item[0, 0, 0]).all() for item in turned)  # x now runs along y
    oblong = coordinates((4, 2, 3))
    assert {RandomCrops(None)(oblong, make_noise(1, seed)).shape for seed in range(8)} == {oblong.shape}
    assert torch.equal(RandomCrops(None, augment=False)(volume, make_noise(1)), volume)


def test_a_crop_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"Crops of \(8, 4, 4\) voxels do not fit into volumes of \(6, 5, 4\)"):
        RandomCrops((8, 4, 4))(coordinates(), make_noise(1))
