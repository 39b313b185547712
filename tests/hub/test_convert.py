import argparse
import hashlib
import json
import os
import stat
import sys
from functools import cache

import diffusers
import pytest
import torch
from goldens import load_golden
from safetensors import SafetensorError
from safetensors.torch import save_file

import voxdiff
from voxdiff.hub import convert
from voxdiff.hub.convert import CONVERTERS, convert_checkpoint, convert_state_dict
from voxdiff.hub.convert_wdm import KEYS
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline

# Converter, widths, in-channels; count and SHA-256 of the published table: official name, our name, shape.
PUBLISHED = {
    "unet_128": ("wdm", (64, 128, 128, 256, 256), 8, 368, "83a1f9a4784ac6fe"),
    "unet_256": ("wdm", (64, 128, 128, 256, 256, 256), 8, 438, "1914edb89992b4b3"),
    "cwdm": ("cwdm", (64, 128, 128, 256, 256), 32, 394, "0112dc3011028827"),
}


load = cache(load_golden)


def golden(name):
    """An official state dict of which entries may be replaced."""
    return dict(load(name)[1])


def write(path, content):
    torch.save(content, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "brats_unet_128_1200k.pt", golden("wdm_unet"))


def convert_small(checkpoint, out, name="wdm", preset="brats-128"):
    return convert_checkpoint(name, checkpoint, out, preset=preset, norm_num_groups=2)


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_networks_keep_every_name_and_shape(network):
    name, widths, in_channels, count, digest = PUBLISHED[network]
    config = {
        "in_channels": in_channels,
        "out_channels": 8,
        "block_out_channels": widths,
        "layers_per_block": 2,
        "skip_mode": "concat" if name == "cwdm" else "additive",
    }
    with torch.device("meta"):
        tensors = WaveletUNet3DModel(**config).state_dict()
    names = CONVERTERS[name].official_keys(list(tensors), config)
    table = sorted(f"{names[key]} {key} {tuple(tensor.shape)}" for key, tensor in tensors.items())
    assert len(table) == count
    assert hashlib.sha256("\n".join(table).encode()).hexdigest().startswith(digest)
    assert CONVERTERS[name].read_config({names[key]: tensor for key, tensor in tensors.items()}) == config


def test_key_table_names_every_module_once():
    official, ours = zip(*KEYS, strict=True)
    assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


@pytest.mark.parametrize("name", ["wdm", "cwdm"])
def test_converted_network_agrees_with_the_official_one(name, tmp_path):
    meta, state, inputs, outputs = load(f"{name}_unet")
    model = convert_state_dict(name, state, norm_num_groups=2)
    model.save_pretrained(tmp_path)
    for network in (model, WaveletUNet3DModel.from_pretrained(tmp_path)):
        with torch.no_grad():
            sample = network(inputs["x"], torch.tensor(meta["config"]["timesteps"])).sample
        assert (sample - outputs["y"]).abs().max() <= meta["atol"]
    assert not model.training


@pytest.mark.parametrize(
    "name, channels, layers, skips, golden_name",
    [
        ("wdm", 8, 2, "additive", "wdm_unet"),
        ("cwdm", 32, 2, "concat", "cwdm_unet"),
        ("wdm", 8, 1, "additive", "wdm_sampling"),
        ("cwdm", 32, 1, "concat", "cwdm_sampling"),
    ],
)
def test_configuration_is_read_off_the_tensors(name, channels, layers, skips, golden_name):
    config = convert_state_dict(name, golden(golden_name), norm_num_groups=2).config
    widths = (4, 8, 8, 16, 16) if layers == 2 else (4, 8)
    received = [config[key] for key in ("in_channels", "out_channels", "layers_per_block", "skip_mode")]
    assert received == [channels, 8, layers, skips] and tuple(config["block_out_channels"]) == widths


def test_tensors_are_copied():
    state = golden("wdm_sampling")
    bias = state["out.2.bias"] = state["out.2.bias"].clone()
    model = convert_state_dict("wdm", state, norm_num_groups=2)
    bias.fill_(7)
    assert not (model.conv_out.bias == 7).any()


def test_default_groups_are_the_published_ones():
    with pytest.raises(ValueError, match="32 groups") as error:
        convert_state_dict("wdm", golden("wdm_sampling"))
    assert one_sentence(error)


@pytest.mark.parametrize("key", ["out.2.bias", "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight"])
def test_a_missing_tensor_is_named(key):
    state = golden("wdm_sampling")
    del state[key]
    with pytest.raises(ValueError, match=key) as error:
        convert_state_dict("wdm", state, norm_num_groups=2)
    assert one_sentence(error)


@pytest.mark.parametrize("key", ["middle_block.1.in_layers.2.weight", "input_blocks.0.0.weight", "time_embed.0.weight"])
def test_a_misshaped_tensor_is_named(key):
    state = golden("wdm_sampling")
    state[key] = state[key].flatten(1)[:, :-1]
    with pytest.raises(ValueError, match=key) as error:
        convert_state_dict("wdm", state, norm_num_groups=2)
    assert one_sentence(error)


@pytest.mark.parametrize("key", ["input_blocks.99.0.in_layers.0.weight", "conv_in.weight", "ema"])
def test_an_extra_tensor_is_named(key):
    state = {**golden("wdm_sampling"), key: torch.zeros(4)}
    with pytest.raises(ValueError, match=f"1 unexpected, the first is {key}") as error:
        convert_state_dict("wdm", state, norm_num_groups=2)
    assert one_sentence(error)


def test_all_kinds_of_problems_are_counted():
    state = {**golden("wdm_sampling"), "a": torch.zeros(1), "b": torch.zeros(1)}
    state["out.2.bias"] = torch.zeros(3)
    del state["out.0.bias"], state["time_embed.2.bias"]
    with pytest.raises(
        ValueError, match=r"2 of 114 tensors missing.*2 unexpected.*1 misshaped.*\(3,\) instead of \(8,\)"
    ):
        convert_state_dict("wdm", state, norm_num_groups=2)


@pytest.mark.parametrize(
    "key, reason",
    [
        ("out_res.0.0.in_layers.0.weight", "WavU-Net"),
        ("input_blocks.7.1.qkv.weight", "attention"),
        ("label_emb.weight", "class-conditional"),
        ("input_blocks.3.0.op.weight", "resblock_updown"),
    ],
)
def test_other_networks_of_the_family_are_refused(key, reason):
    with pytest.raises(ValueError, match=reason) as error:
        convert_state_dict("wdm", {**golden("wdm_sampling"), key: torch.zeros(2, 2)}, norm_num_groups=2)
    assert one_sentence(error)


@pytest.mark.parametrize("name, other", [("wdm", "cwdm"), ("cwdm", "wdm")])
def test_a_checkpoint_of_the_sister_method_is_refused(name, other):
    with pytest.raises(ValueError, match=f"is '{other}'") as error:
        convert_state_dict(name, golden(f"{other}_sampling"), norm_num_groups=2)
    assert one_sentence(error)


@pytest.mark.parametrize(
    "name, state, overrides, reason",
    [
        ("maisi", {}, {}, "choose one of wdm, cwdm"),
        ("wdm", {}, {}, "no tensor 'input_blocks.0.0.weight'"),
        ("wdm", {"module.out.2.weight": torch.zeros(1)}, {}, "'module.out.2.weight'"),
        ("wdm", {}, {"in_channels": 8}, "'in_channels'.*norm_num_groups or norm_eps"),
    ],
)
def test_unusable_arguments_explain_themselves(name, state, overrides, reason):
    with pytest.raises(ValueError, match=reason) as error:
        convert_state_dict(name, state, **overrides)
    assert one_sentence(error)


def test_a_decoder_that_lacks_a_block_is_refused():
    state = {key: value for key, value in golden("wdm_sampling").items() if not key.startswith("output_blocks.3.")}
    with pytest.raises(ValueError, match="3 output_blocks, 1 of which") as error:
        convert_state_dict("wdm", state, norm_num_groups=2)
    assert one_sentence(error)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_becomes_a_pipeline_folder(suffix, tmp_path):
    meta, state, inputs, outputs = load("wdm_unet")
    source = tmp_path / f"mine{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, source)
    out = convert_small(source, tmp_path / "new" / "wdm")
    index = json.loads((out / "model_index.json").read_text())
    assert index["unet"] == ["voxdiff", "WaveletUNet3DModel"] and index["output_volumes"] == {"t1n": 0}
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler",
        "unet",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["wdm"]
    pipe = voxdiff.Pipeline.from_pretrained(out)
    assert isinstance(pipe, WaveletDiffusionPipeline)
    with torch.no_grad():
        sample = pipe.unet(inputs["x"], torch.tensor(meta["config"]["timesteps"])).sample
    assert (sample - outputs["y"]).abs().max() <= meta["atol"]
    image = pipe(size=(32, 32, 32), num_inference_steps=1, generator=torch.Generator().manual_seed(0)).volumes[0]
    assert image.shape == (32, 32, 32) and image.header.get_zooms() == (2, 2, 2)


def test_a_translation_model_keeps_the_order_of_its_conditions(tmp_path):
    out = convert_small(write(tmp_path / "t1ce_gen.pt", golden("cwdm_unet")), tmp_path / "out", "cwdm", "cwdm-t1c")
    pipe = voxdiff.Pipeline.from_pretrained(out)
    assert pipe.condition_names == ["t1n", "t2w", "t2f"] and pipe.output_names == ["t1c"]
    assert pipe.volume_processor.value_range == (0, 1)
    assert '"t1n": "t1n.nii.gz", "t2w"' in (out / "README.md").read_text()


def test_plain_diffusers_loads_the_folder_with_trust_remote_code(checkpoint, tmp_path):
    out = convert_small(checkpoint, tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(out, custom_pipeline="pipeline", trust_remote_code=True)
    assert isinstance(pipe, WaveletDiffusionPipeline)


def test_the_card_says_where_the_weights_come_from(checkpoint, tmp_path):
    card = (convert_small(checkpoint, tmp_path / "out") / "README.md").read_text()
    for fact in (
        "license: mit",
        "base_model: pfriedri/wdm-3d",
        "Weights converted from `brats_unet_128_1200k.pt`",
        "--preset brats-128 --norm-num-groups 2",
        hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "Not for clinical use",
    ):
        assert fact in card
    own = (convert_small(checkpoint.rename(tmp_path / "own.pt"), tmp_path / "own") / "README.md").read_text()
    assert "license: unknown" in own and "base_model" not in own


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_others_may_read_the_folder(checkpoint, tmp_path):
    mask = os.umask(0o022)
    try:
        out = convert_small(checkpoint, tmp_path / "out")
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}
    assert modes == {0o644} and stat.S_IMODE(out.stat().st_mode) == 0o755


def test_an_existing_output_is_left_alone(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for taken in (out, out / "mine.txt"):
        with pytest.raises(FileExistsError, match="exists already") as error:
            convert_small(checkpoint, taken)
        assert one_sentence(error)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert (convert_small(checkpoint, out) / "model_index.json").exists()


@pytest.mark.parametrize(
    "failure, raised",
    [
        (OSError("No space left on device"), OSError),
        (SafetensorError("I/O error: No space left on device"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_nothing(failure, raised, checkpoint, tmp_path, monkeypatch):
    def fail(*arguments):
        raise failure

    monkeypatch.setattr(convert, "conversion_card", fail)
    with pytest.raises(raised, match="could not be written .*No space left" if raised is OSError else None):
        convert_small(checkpoint, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def _truncated(path):
    torch.save({"w": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


BAD_FILES = {
    "payload": (lambda path: torch.save({"w": torch.zeros(2), "x": Payload()}, path), "Python objects .posix.mkdir."),
    "arguments": (
        lambda path: torch.save({"w": torch.zeros(2), "x": argparse.Namespace()}, path),
        "argparse.Namespace",
    ),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "Python objects"),
    "wrapped": (
        lambda path: torch.save({"epoch": 3, "model": {"w": torch.zeros(2)}}, path),
        "perhaps the entry 'model'",
    ),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "one object of type Tensor"),
    "nothing": (lambda path: torch.save({}, path), "is empty"),
    "truncated": (_truncated, "no readable PyTorch checkpoint"),
    "text": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "no readable PyTorch checkpoint",
    ),
    "empty": (lambda path: path.write_bytes(b""), "no readable PyTorch checkpoint"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 8), "no readable PyTorch checkpoint"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bad_file_is_refused_in_one_sentence_and_nothing_is_written(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, reason = BAD_FILES[kind]
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(ValueError, match=reason) as error:
        convert_small(path, tmp_path / "out")
    assert one_sentence(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_a_bad_safetensors_file_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="no readable safetensors file") as error:
        convert_small(tmp_path / "bad.safetensors", tmp_path / "out")
    assert one_sentence(error)
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        convert_small(tmp_path / "absent.pt", tmp_path / "out")
