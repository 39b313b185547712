import pytest
import torch
from slab_decoders import make_decoder

from voxdiff.models.layers_autoencoder_3d import Decoder3D
from voxdiff.models.slab_decoding import SlabDecoder

SHAPE = (1, 4, 8, 4, 4)


def plan(decoder, budget_bytes, shape=SHAPE, dtype=torch.float32):
    return SlabDecoder(decoder, budget_bytes / 2**30).plan(shape, dtype)


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(4)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        config = {"num_attention_heads": 4, "attention_head_dim": 32, "norm_num_groups": 24, "norm_eps": 1e-6}
        return {8: Decoder3D(8, 1, (48, 96, 192, 192), **config), 4: Decoder3D(8, 1, (48, 96, 96), **config)}


def allocated_peak(function):
    """Peak of what PyTorch's CPU allocator hands out, oneDNN's copies included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_a_large_budget_computes_everything_once_and_adds_in_place(decoder):
    generous = plan(decoder, 2**33)
    assert generous.multiply_adds == generous.whole_multiply_adds
    assert all(step.stores for step in generous.passes)
    assert sum(step.in_place for step in generous.passes) == 2 + 2 + 2 + 1  # a shortcut changes the width in one block
    assert generous.passes[-1].rows == 32


@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 8, 6, 4)])
def test_less_memory_takes_more_work(decoder, shape):
    generous = plan(decoder, 2**33, shape)
    budgets = [generous.minimum_bytes + part * (generous.peak_bytes - generous.minimum_bytes) // 8 for part in range(9)]
    plans = [plan(decoder, budget, shape) for budget in budgets]
    for budget, chosen in zip(budgets, plans, strict=True):
        assert chosen.peak_bytes <= budget
    work = [chosen.multiply_adds for chosen in plans]
    assert work == sorted(work, reverse=True)
    assert work[0] > 1.4 * work[-1]
    assert work[-1] == generous.whole_multiply_adds


@pytest.mark.parametrize("part", [0, 0.05, 0.3, 1])
def test_the_predicted_peak_is_an_upper_bound_near_the_measured_one(part):
    decoder = make_decoder(4, block_out_channels=(16, 32, 32))
    generous = plan(decoder, 2**33)
    budget = generous.minimum_bytes + part * (generous.peak_bytes - generous.minimum_bytes) + 1
    slabs = SlabDecoder(decoder, budget / 2**30)
    predicted = slabs.plan(SHAPE, torch.float32).peak_bytes
    latents = torch.randn(SHAPE)
    assert 0.6 * predicted < allocated_peak(lambda: slabs(latents)) <= predicted <= budget


def test_a_budget_that_is_too_small_names_the_smallest_one(decoder):
    with pytest.raises(
        ValueError, match=r"32 x 16 x 16 voxels .* takes at least 0.\d+ GiB: raise max_memory_gb"
    ) as error:
        plan(decoder, 2**17)
    smallest = float(str(error.value).split("at least ")[1].split(" GiB")[0])
    assert SlabDecoder(decoder, smallest).plan(SHAPE, torch.float32).passes


@pytest.mark.parametrize("factor", [8, 4])
def test_512_cubed_fits_a_gpu_of_8_gib_in_16_bits(published, factor):
    shape = (1, 8, *[512 // factor] * 3)
    for budget in (8, 16):
        chosen = plan(published[factor], budget * 2**30, shape, torch.bfloat16)
        assert chosen.peak_bytes <= budget * 2**30
        assert chosen.multiply_adds < 2.7 * chosen.whole_multiply_adds


def test_the_work_of_the_whole_decode_is_the_one_counted_for_the_official_decoder(published):
    tflop = [2e-12 * plan(published[8], 2**36, (1, 8, *[s] * 3)).whole_multiply_adds for s in (8, 32, 64)]
    assert tflop == pytest.approx([0.35, 23, 215], rel=0.03)
    assert 2e-12 * plan(published[4], 2**36, (1, 8, 128, 128, 128)).whole_multiply_adds == pytest.approx(2401, rel=0.01)
