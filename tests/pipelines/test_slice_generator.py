import pytest
import torch
from informed_slice_pipelines import make_informed_pipeline, make_slice_generator


@pytest.fixture(scope="module")
def pipe():
    return make_informed_pipeline(slice_unet=make_slice_generator(), scheduler="gem-ddim")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def generate(pipe, position=0.5, **arguments):
    return pipe.generate_slice(position, (8, 12), num_inference_steps=2, **{"generator": seeded(), **arguments})


def test_a_slice_depends_on_its_position_and_its_noise(pipe):
    reference = generate(pipe)
    assert reference.shape == (1, 4, 4, 6)
    assert torch.equal(reference, generate(pipe))
    for changed in ({"position": 0.9}, {"generator": seeded(1)}, {"eta": 1.0}):
        assert (reference - generate(pipe, **changed)).abs().max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_slice_depends_on_its_own_generator(pipe, eta):
    together = generate(pipe, batch_size=2, generator=[seeded(4), seeded(5)], eta=eta)
    for place, seed in enumerate((4, 5)):
        alone = generate(pipe, generator=seeded(seed), eta=eta)
        assert (together[place : place + 1] - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (9, 12)}, r"size is \(9, 12\); give \(x, y\), both divisible by 4"),
        ({"size": (8, 8, 8)}, "give .x, y., both divisible"),
        ({"position": 1.5}, "position is 1.5; give a number from 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"generator": [seeded()] * 2}, "2 generators were given for a batch of 1"),
        ({"eta": 2.0}, "eta is 2.0"),
    ],
)
def test_wrong_inputs_explain_themselves(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate_slice(**{"position": 0.5, "size": (8, 12), "num_inference_steps": 1, **arguments})


def test_without_a_generator_of_slices_there_is_none():
    with pytest.raises(ValueError, match="this pipeline has no slice_unet to generate one"):
        generate(make_informed_pipeline())
