import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from voxdiff.cli.main import app


def test_published_heads_are_converted(tmp_path):
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{level}.model.1.weight": torch.rand(1, width, 1, 1) for level, width in enumerate(widths)}
    torch.save(heads, tmp_path / "vgg.pth")
    target = tmp_path / "lpips-vgg.safetensors"
    result = CliRunner().invoke(app, ["convert-extractor", "lpips-vgg", str(tmp_path / "vgg.pth"), str(target)])
    assert result.exit_code == 0, result.output
    assert "SHA-256" in result.output
    assert torch.equal(load_file(target)["lin4.model.1.weight"], heads["lin4.model.1.weight"])


def test_what_does_not_fit_is_one_sentence(tmp_path):
    torch.save({"conv1.weight": torch.rand(2)}, tmp_path / "tiny.pth")
    target = tmp_path / "tiny.safetensors"
    result = CliRunner().invoke(app, ["convert-extractor", "vgg16", str(tmp_path / "tiny.pth"), str(target)])
    assert result.exit_code == 1
    assert "Error: The weights do not fit vgg16: 26 tensors missing" in result.output
    assert not target.exists()
