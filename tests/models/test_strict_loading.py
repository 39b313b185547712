"""Weights are safetensors and fit their configuration in every tensor; anything else is an error of one sentence."""

import shutil

import pytest
import torch
from conftest import make_pipeline, make_unet
from safetensors.torch import load_file, save_file

import voxdiff
from voxdiff import WaveletDiffusionPipeline, WaveletUNet3DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
VICTIM = "mid_block.resnets.0.conv1.weight"


@pytest.fixture
def folder(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def pickled(folder, suffix=".bin"):
    """The same folder with a pickle instead of safetensors."""
    weights = folder / "unet" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(suffix))
    weights.unlink()
    return folder


def change_weights(folder, change):
    weights = folder / "unet" / WEIGHTS
    state = load_file(weights)
    change(state)
    save_file(state, weights, metadata={"format": "pt"})


def refusal(load):
    with pytest.raises(ValueError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("loader", [WaveletDiffusionPipeline, voxdiff.Pipeline, WaveletUNet3DModel])
def test_a_pickled_file_is_refused(loader, suffix, tmp_path):
    torch.save(make_unet().state_dict(), tmp_path / f"model{suffix}")
    assert "`voxdiff convert`" in refusal(lambda: loader.from_pretrained(str(tmp_path / f"model{suffix}")))


@pytest.mark.parametrize("arguments", [{}, {"use_safetensors": None}, {"use_safetensors": False}])
def test_a_folder_of_pickles_is_refused(arguments, folder):
    pickled(folder)
    for load in (
        lambda: WaveletDiffusionPipeline.from_pretrained(folder, **arguments),
        lambda: voxdiff.Pipeline.from_pretrained(str(folder), **arguments),
        lambda: WaveletUNet3DModel.from_pretrained(folder, subfolder="unet", **arguments),
        lambda: WaveletUNet3DModel.from_pretrained(folder / "unet", **arguments),
    ):
        assert "`voxdiff convert`" in refusal(load)


def test_a_pickle_beside_the_safetensors_is_never_read(folder):
    weights = folder / "unet" / WEIGHTS
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"):
        torch.save({VICTIM: torch.full((1,), torch.nan)}, weights.with_name(name))
    loaded = WaveletDiffusionPipeline.from_pretrained(folder, use_safetensors=None).unet
    assert_same_weights(loaded, load_file(weights))
    assert "`voxdiff convert`" in refusal(
        lambda: WaveletUNet3DModel.from_pretrained(folder / "unet", use_safetensors=False)
    )
    with pytest.raises(OSError, match=r"fp16\.safetensors"):
        WaveletUNet3DModel.from_pretrained(folder / "unet", variant="fp16", use_safetensors=None)


def loaders(folder):
    return {
        "pipeline": lambda **options: WaveletDiffusionPipeline.from_pretrained(folder, **options),
        "auto": lambda **options: voxdiff.Pipeline.from_pretrained(folder, **options),
        "model": lambda **options: WaveletUNet3DModel.from_pretrained(folder / "unet", **options),
    }


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("loader", ["pipeline", "auto", "model"])
@pytest.mark.parametrize("problem", ["missing", "extra", "misshaped"])
def test_a_tensor_that_does_not_fit_is_named(problem, loader, low_cpu_mem_usage, folder):
    name = {"missing": VICTIM, "extra": "mid_block.resnets.0.conv9.weight", "misshaped": VICTIM}[problem]
    change_weights(
        folder,
        lambda state: state.pop(name) if problem == "missing" else state.update({name: torch.zeros(3, 3)}),
    )
    message = refusal(lambda: loaders(folder)[loader](low_cpu_mem_usage=low_cpu_mem_usage))
    assert name in message


def test_a_misshaped_tensor_is_not_silently_initialised_on_request(folder):
    change_weights(folder, lambda state: state.update({VICTIM: torch.zeros(3, 3)}))
    assert VICTIM in refusal(lambda: loaders(folder)["model"](ignore_mismatched_sizes=True))


def test_a_configuration_of_another_width_is_refused(folder):
    make_unet(block_out_channels=(8, 8)).save_config(folder / "unet")
    refusal(loaders(folder)["model"])


def assert_same_weights(model, state):
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name].to(tensor.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("loader", ["pipeline", "auto", "model"])
def test_weights_come_back_bit_for_bit(loader, folder):
    loaded = loaders(folder)[loader]()
    assert_same_weights(getattr(loaded, "unet", loaded), make_unet().state_dict())


def test_a_variant_is_saved_and_loaded(folder):
    shutil.rmtree(folder)
    pipe = make_pipeline().to(torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    for loader in ("pipeline", "auto", "model"):
        loaded = loaders(folder)[loader](variant="fp16", dtype=torch.float16)
        unet = getattr(loaded, "unet", loaded)
        assert unet.dtype == torch.float16
        assert_same_weights(unet, pipe.unet.state_dict())
        with pytest.raises((OSError, ValueError), match=r"safetensors|bf16"):
            loaders(folder)[loader](variant="bf16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_casts_the_network_and_the_output_stays_finite(dtype, folder):
    assert loaders(folder)["model"](dtype=dtype).dtype == dtype
    pipe = loaders(folder)["auto"](dtype=dtype)
    assert pipe.unet.dtype == dtype
    output = pipe(num_inference_steps=2, output_type="pt")
    assert output.volumes.isfinite().all()
    assert output.provenance[0]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_shards_are_loaded_strictly_too(low_cpu_mem_usage, folder):
    shutil.rmtree(folder / "unet")
    make_unet().save_pretrained(folder / "unet", max_shard_size="5KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert_same_weights(loaders(folder)["pipeline"]().unet, make_unet().state_dict())
    state = load_file(shards[0])
    name = sorted(state)[0]
    save_file({key: value for key, value in state.items() if key != name}, shards[0], metadata={"format": "pt"})
    for loader in ("pipeline", "model"):
        assert name in refusal(lambda: loaders(folder)[loader](low_cpu_mem_usage=low_cpu_mem_usage))  # noqa: B023
