import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from voxdiff.metrics.extractors import transformers_vision
from voxdiff.metrics.extractors.transformers_vision import load_transformers
from voxdiff.metrics.extractors.weights import file_sha256

PREPROCESSING = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a vision model's repository holds."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return path


@pytest.fixture
def changeable(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_features_are_the_class_token_of_standardised_slices(folder):
    extractor = load_transformers(folder)
    slices = torch.rand(2, 1, 28, 28)
    fed = torch.cat([(slices - mean) / std for mean, std in ((0.5, 0.2), (0.4, 0.3), (0.3, 0.4))], 1)
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(folder).eval()(pixel_values=fed).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(slices).values, expected)
    assert extractor.num_features == 16


def test_slices_of_any_size_are_brought_to_the_published_grid(folder):
    extractor = load_transformers(folder)
    assert extractor.settings()["input_size"] == [28, 28]
    assert extractor(torch.rand(1, 1, 40, 64)).values.shape == (1, 16)


def test_the_report_pins_weights_and_preprocessing(folder):
    extractor = load_transformers(folder)
    assert extractor.sha256 == file_sha256(folder / "model.safetensors")
    assert extractor.settings()["mean"] == [0.5, 0.4, 0.3]


def test_a_network_without_tokens_gives_the_mean_over_positions(tmp_path):
    config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2)
    ConvNextModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, "crop_size": 32}))
    extractor = load_transformers(tmp_path)
    assert extractor(torch.rand(3, 1, 32, 32)).values.shape == (3, extractor.num_features) == (3, 8)


def test_a_model_in_the_hub_cache_loads_offline(folder, tmp_path, monkeypatch):
    repository = tmp_path / "models--lab--tiny-dino"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    download = transformers_vision.snapshot_download
    monkeypatch.setattr(
        transformers_vision, "snapshot_download", lambda *args, **kwargs: download(*args, cache_dir=tmp_path, **kwargs)
    )
    extractor = load_transformers("lab/tiny-dino")
    assert extractor.name == "transformers:lab/tiny-dino"
    assert torch.equal(
        extractor(torch.ones(1, 1, 28, 28)).values, load_transformers(folder)(torch.ones(1, 1, 28, 28))[0]
    )


def test_a_model_that_is_nowhere_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("lab/no-such-model", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match="neither a folder nor in the Hub cache"):
            load_transformers(name)


def test_a_pickled_model_is_not_loaded(changeable):
    torch.save(load_file(changeable / "model.safetensors"), changeable / "pytorch_model.bin")
    (changeable / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors \(a pickle is not loaded\)"):
        load_transformers(changeable)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("layernorm.bias"), "missing keys, the first is layernorm.bias"),
        (lambda state: state.update(stranger=torch.zeros(1)), "unexpected keys, the first is stranger"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, complaint, changeable):
    state = load_file(changeable / "model.safetensors")
    change(state)
    save_file(state, changeable / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=complaint):
        load_transformers(changeable)


@pytest.mark.parametrize("missing", ["image_mean", "crop_size"])
def test_incomplete_preprocessing_is_said(missing, changeable):
    kept = {key: value for key, value in PREPROCESSING.items() if key != missing}
    (changeable / "preprocessor_config.json").write_text(json.dumps(kept))
    config = json.loads((changeable / "config.json").read_text())
    del config["image_size"]
    (changeable / "config.json").write_text(json.dumps({**config, "image_size": [28, 28]}))
    with pytest.raises(ValueError, match=r"does not give size, image_mean and image_std"):
        load_transformers(changeable)


def test_without_preprocessing_there_is_no_extractor(changeable):
    (changeable / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        load_transformers(changeable)
