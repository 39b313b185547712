import argparse

import pytest
import torch
from bench_patch_volume import EXACT, HALF, OURS, Variant, compare, slab_calls
from patch_volume_tables import add_errors, part_table

from voxdiff import AutoencoderPatchVolume, BiFlowNet3DModel

ARGS = argparse.Namespace(device="cpu", slab_gb=[0.02, 0.01], rounds=1)


@pytest.fixture
def variants():
    torch.manual_seed(0)
    layout = {"num_attention_heads": 2, "attention_head_dim": 4, "norm_num_groups": 4, "num_embeddings": 16}
    vae = AutoencoderPatchVolume(block_out_channels=(8, 8), patch_size=8, **layout).eval()
    with torch.device("meta"):
        unet = BiFlowNet3DModel()
    return {
        name: Variant(vae, unet, dtype, torch.contiguous_format)
        for name, dtype in ((OURS, torch.float32), (HALF, torch.float32))
    }


def test_slab_decodes_on_cuda_are_compared_in_their_own_precision(variants):
    args = argparse.Namespace(**vars(ARGS) | {"device": "cuda"})
    calls, references = slab_calls(16, torch.randn(1, 8, 8, 8, 8), variants, args)
    assert next(iter(calls)) == EXACT
    assert references == {
        f"{EXACT} slabs 0.04 GiB": [EXACT],
        f"{EXACT} slabs 0.02 GiB": [EXACT, f"{EXACT} slabs 0.04 GiB"],
        f"{HALF} slabs 0.02 GiB": [HALF],
        f"{HALF} slabs 0.01 GiB": [HALF, f"{HALF} slabs 0.02 GiB"],
    }
    budgets = [variants[OURS].vae._slab_decoder] + [call.args[0].args[0]._slab_decoder for call in calls.values()]
    assert budgets[:2] == [None, None]
    assert [slabs.max_memory_gb for slabs in budgets[2:]] == [0.04, 0.02, 0.02, 0.01]


def test_small_volumes_are_decoded_in_slabs_on_request_only(variants):
    latents = torch.randn(1, 8, 8, 8, 8)
    default = argparse.Namespace(device="cpu", slab_gb=None)
    assert slab_calls(16, latents, variants, default) == ({}, {})
    assert list(slab_calls(128, latents, variants, default)[0]) == [f"{OURS} slabs 1 GiB"]
    assert list(slab_calls(16, latents, variants, ARGS)[0]) == [f"{OURS} slabs 0.02 GiB", f"{OURS} slabs 0.01 GiB"]


@torch.no_grad()
def test_slab_decodes_are_compared_with_the_whole_or_the_next_larger_budget(variants):
    latents = torch.randn(1, 8, 8, 8, 8)
    slabs, references = slab_calls(16, latents, variants, ARGS)
    large, small = slabs

    def whole():
        return variants[OURS].vae.decode(latents).sample

    def out_of_memory():
        raise torch.cuda.OutOfMemoryError

    other = {"other": lambda: 1.5 * whole()}
    fits = compare({OURS: whole, **other, **slabs}, ARGS, tiled=True, references=references)
    assert "error" not in fits[OURS] and fits["other"]["error"] == pytest.approx(0.5)
    assert fits[large]["error_to"] == fits[small]["error_to"] == fits["other"]["error_to"] == OURS
    assert fits[small]["error"] < 1e-5
    too_large = compare({OURS: out_of_memory, **other, **slabs}, ARGS, tiled=True, references=references)
    assert too_large[OURS] == {"out_of_memory": True}
    assert "error" not in too_large[large]
    assert too_large[small]["error_to"] == too_large["other"]["error_to"] == large
    assert too_large[small]["error"] < 1e-5 and too_large["other"]["error"] == pytest.approx(0.5, rel=1e-3)
    table = part_table("decode", 8, 16, too_large, "cpu").splitlines()
    assert table[0].split("|")[-2].strip() == "error to"
    assert [line.split("|")[-2].strip() for line in table[2:]] == ["-", large, "-", large]


def test_an_error_of_zero_is_shown_and_one_that_is_not_measured_is_not():
    timed = {"median_s": 1.0, "cpu_s": 1.0, "ratio": None, "ratio_cpu": None, "peak_memory_mb": 1.0}
    measured = {"a": dict(timed), "b": dict(timed)}
    outputs = {"a": torch.ones(2), "b": torch.ones(2)}
    add_errors(measured, outputs, {"a": ["a"], "b": ["missing", "a"]})
    assert (measured["b"]["error"], measured["b"]["error_to"]) == (0, "a")
    first, second = part_table("decode", 8, 64, measured, "cuda").splitlines()[2:]
    assert first.split("|")[-3].strip() == "-" and second.split("|")[-3].strip() == "0.0e+00"


def test_ours_far_from_the_official_output_stops_the_benchmark():
    calls = {"official float32": lambda: torch.ones(2), OURS: lambda: torch.tensor([1.0, float("nan")])}
    with pytest.raises(RuntimeError, match="differs from the official output by nan"):
        compare(calls, ARGS)
