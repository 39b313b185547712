"""The downstream networks learn what they are shown, and a seed decides the rest."""

import sys

import pytest
import torch

from voxdiff.metrics.downstream import (
    TrainingSettings,
    _draw_patch,
    classify,
    segment,
    segmentation_patch,
    train_classifier,
    train_segmenter,
)


def bright_box(seed, grid=(16, 16, 16), edge=6):
    """Noise with a bright box somewhere, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    start = [int(torch.randint(side - edge + 1, (), generator=generator)) for side in grid]
    image, label = 0.3 * torch.rand((1, *grid), generator=generator), torch.zeros((1, *grid), dtype=torch.uint8)
    box = (0, *(slice(place, place + edge) for place in start))
    image[box] += 0.6
    label[box] = 1
    return image, label


def overlap(found, truth):
    return float(2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum()))


def test_the_segmenter_learns_to_find_a_box_in_new_volumes():
    examples = [bright_box(seed) for seed in range(6)]
    settings = TrainingSettings(steps=25, learning_rate=1e-2)
    steps = []
    network = train_segmenter(examples, num_labels=2, settings=settings, seed=0, on_step=lambda: steps.append(1))
    image, label = bright_box(100)
    assert overlap(segment(network, image, settings=settings, patch=(16, 16, 16)), label) > 0.8
    assert len(steps) == 25


def test_patches_segment_a_larger_volume_of_another_grid():
    settings = TrainingSettings(steps=30, learning_rate=1e-2, patch_size=(16, 16, 16))
    examples = [bright_box(seed, (20, 18, 12)) for seed in range(6)]
    network = train_segmenter(examples, num_labels=2, settings=settings, seed=0)
    image, label = bright_box(100, (24, 20, 10))
    found = segment(network, image, settings=settings, patch=segmentation_patch(image, settings))
    assert found.shape == label.shape and found.dtype == torch.uint8
    assert overlap(found, label) > 0.6


def test_a_grid_that_cannot_be_halved_is_padded():
    image, label = bright_box(0, (15, 10, 12))
    settings = TrainingSettings(steps=1)
    assert segmentation_patch(image, settings) == (16, 16, 16)
    network = train_segmenter([(image, label)], num_labels=2, settings=settings, seed=0)
    assert segment(network, image, settings=settings, patch=(16, 16, 16)).shape == (1, 15, 10, 12)


def test_half_of_the_patches_hold_a_rare_label():
    image, label = torch.zeros(1, 48, 48, 48), torch.zeros(1, 48, 48, 48, dtype=torch.uint8)
    label[0, 40, 3, 20] = 1
    generator = torch.Generator().manual_seed(0)
    hits = [bool(_draw_patch(image, label, (8, 8, 8), generator)[1].any()) for _ in range(100)]
    assert 35 < sum(hits) < 65


def test_image_and_labels_are_cropped_alike():
    values = torch.arange(20 * 18 * 16).reshape(1, 20, 18, 16)
    generator = torch.Generator().manual_seed(0)
    image, label = _draw_patch(values.float(), values, (8, 24, 16), generator)
    assert image.shape == (1, 8, 24, 16)
    assert torch.equal(image.long(), label)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_decides_the_network_whatever_the_global_state(dtype):
    examples = [bright_box(seed) for seed in range(3)]
    settings = TrainingSettings(steps=3, dtype=dtype)

    def weights(seed):
        network = train_segmenter(examples, num_labels=2, settings=settings, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    first = weights(0)
    # Gradients must not depend on what memory held before.
    junk = [torch.full((10**digits,), 1e30) for digits in (3, 3, 3, 4, 4, 4, 5, 5, 5)]
    del junk
    torch.rand(5)
    state = torch.get_rng_state()
    again, other = ((weights(seed) - first).abs().mean() for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert again == 0 < other


def test_the_classifier_learns_whether_there_is_a_box():
    examples = []
    for seed in range(16):
        image, label = bright_box(seed)
        examples.append((image - 0.6 * label * (seed % 2 == 0), seed % 2))
    settings = TrainingSettings(steps=20, batch_size=4)
    network = train_classifier(examples[:12], num_classes=2, settings=settings, seed=0)
    assert [classify(network, image, settings=settings) for image, _ in examples[12:]] == [0, 1, 0, 1]


def test_networks_are_as_small_as_the_module_says():
    settings = TrainingSettings(steps=1)
    image, label = bright_box(0)
    unet = train_segmenter([(image, label)], num_labels=4, settings=settings, seed=0)
    resnet = train_classifier([(image, 0)], num_classes=3, settings=settings, seed=0)
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in (unet, resnet)]
    assert sizes == [339_209, 225_115]


def test_a_training_that_diverges_says_so():
    settings = TrainingSettings(steps=1, learning_rate=float("inf"))
    with pytest.raises(ValueError, match="diverged"):
        train_segmenter([bright_box(0)], num_labels=2, settings=settings, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "above 0"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"dtype": "float16"}, "allowed are float32, bfloat16"),
        ({"patch_size": (16, 16, 12)}, "three multiples of 8"),
        ({"patch_size": (16, 16, 8)}, "from 16"),
        ({"patch_size": (16, 16)}, "three multiples of 8"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**arguments)


def test_a_classifier_takes_no_patches():
    with pytest.raises(ValueError, match="whole volumes"):
        train_classifier([], num_classes=2, settings=TrainingSettings(patch_size=(16, 16, 16)), seed=0)


def test_missing_monai_explains_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ModuleNotFoundError, match=r"voxdiff\[metrics\]"):
        train_classifier([], num_classes=2, settings=TrainingSettings(), seed=0)
