import json
import math
import re

import numpy as np
import pytest
import torch
from autoencoders import make_autoencoder, make_kl_autoencoder
from PIL import Image

from voxdiff.metrics.structural import ssim
from voxdiff.workflows.autoencoder_report import (
    check_autoencoder,
    measure_autoencoder,
    read_autoencoder_report,
    save_reconstructions,
    write_autoencoder_report,
)

SOUND = {
    "volumes": 4,
    "compression": 8,
    "psnr": 30.0,
    "ssim": 0.9,
    "mean_image_psnr": 17.0,
    "blurred_psnr": 19.0,
    "latent_mean": 0.0,
    "latent_std": 0.3,
    "latent_min": -1.0,
    "latent_max": 1.0,
    "code_share": 0.5,
    "codes_used": 256,
    "perplexity": 180.0,
}


def make_volumes(count=3, size=(16, 16, 16)):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 4, 4, 4, generator=generator) * 2 - 1
    return list(torch.nn.functional.interpolate(coarse, size=size, mode="trilinear"))


def test_the_numbers_are_those_of_the_definitions():
    vae, volumes = make_autoencoder(), make_volumes()
    report = measure_autoencoder(vae, volumes)
    batch = torch.stack(volumes)
    with torch.no_grad():
        latents = vae.encode(batch).latents
        reconstructed = vae.decode(latents).sample.clamp(-1, 1)
        patchwise = vae.decode_patches(latents).sample.clamp(-1, 1)
    errors = (batch - patchwise).square().flatten(1).mean(1)
    assert report["patch_psnr"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), rel=1e-5)
    errors = (batch - reconstructed).square().flatten(1).mean(1)
    assert report["psnr"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), rel=1e-5)
    assert report["ssim"] == pytest.approx(ssim(batch + 1, reconstructed + 1, data_range=2.0).mean().item(), rel=1e-5)
    errors = (batch - (batch.sum(0) - batch) / 2).square().flatten(1).mean(1)
    assert report["mean_image_psnr"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), rel=1e-5)
    assert report["latent_mean"] == pytest.approx(latents.mean().item(), rel=1e-4)
    assert report["latent_std"] == pytest.approx(latents.std(correction=0).item(), rel=1e-4)
    assert (report["latent_min"], report["latent_max"]) == pytest.approx((latents.min().item(), latents.max().item()))
    used, counts = vae.quantize_latents(latents).unique(return_counts=True)
    frequencies = counts / counts.sum()
    assert report["codes_used"] == len(used) and report["code_share"] == len(used) / 16
    assert report["perplexity"] == pytest.approx(torch.exp(-(frequencies * frequencies.log()).sum()).item(), rel=1e-5)
    assert report["blurred_psnr"] > report["mean_image_psnr"]


def test_volumes_of_several_grids_have_a_mean_each():
    flat = [torch.full((1, 16, 16, 16), 0.5)] * 2 + [torch.full((1, 16, 16, 24), -0.5)]
    report = measure_autoencoder(make_autoencoder(), flat)
    assert report["mean_image_psnr"] > 100 and report["blurred_psnr"] > 100


def test_the_autoencoder_is_left_as_it_is():
    vae = make_autoencoder().train()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    measure_autoencoder(vae, make_volumes())
    assert vae.training
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


def test_a_kl_autoencoder_has_no_codes():
    report = measure_autoencoder(make_kl_autoencoder(), make_volumes())
    assert "code_share" not in report and report["latent_std"] > 0


def test_report_and_picture_are_written(tmp_path):
    report = write_autoencoder_report(make_autoencoder(), make_volumes(6, (16, 24, 8 * 2)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"autoencoder_report.json", "autoencoder_report.png"}
    assert json.loads((tmp_path / "autoencoder_report.json").read_text()) == report == read_autoencoder_report(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "autoencoder_report.png"))
    assert picture.shape == (4 * (24 + 2), 2 * (16 + 16 + 24) + 6 * 2)


def test_the_picture_has_originals_beside_reconstructions(tmp_path):
    vae = make_autoencoder()
    vae.decode = lambda latents: type("", (), {"sample": torch.ones(1, 1, 16, 16, 16)})  # white
    volume = torch.full((1, 16, 16, 16), -1.0)
    volume[0, 15, 0, 8] = 1.0  # bottom right of the first plane: x to the right, y upwards
    path = save_reconstructions(vae, [volume], tmp_path / "new", "step.png")
    picture = np.asarray(Image.open(path))
    assert (picture[:16, 18:34] == 255).all()
    assert picture[15, 15] == 255 and picture[:16, :16].sum() == 255


def test_a_sound_autoencoder_passes():
    assert check_autoencoder(SOUND) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"psnr": 16.0}, "not above the 17.00 dB of the mean of the other volumes"),
        ({"psnr": 18.0}, "not above the 19.00 dB of the volumes blurred to cells of 8 voxels"),
        ({"code_share": 0.04}, "codebook has collapsed: 4.0%"),
        ({"latent_std": 1e-5}, "latents hardly vary"),
        ({"latent_std": math.nan}, r"not finite \(latent_std\)"),
        ({"psnr": math.inf, "latent_mean": math.nan}, r"not finite \(psnr, latent_mean\)"),
    ],
)
def test_what_is_broken_is_named(change, sentence):
    problems = check_autoencoder({**SOUND, **change})
    assert any(re.search(sentence, problem) for problem in problems)
    assert all(problem.endswith(".") for problem in problems)


def test_collapse_and_non_finite_weights_are_noticed():
    vae = make_autoencoder(num_embeddings=64)
    with torch.no_grad():
        vae.quantize.embedding[1:] += 100
    problems = check_autoencoder(measure_autoencoder(vae, make_volumes()))
    assert any("collapsed" in problem for problem in problems)
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(math.nan)
    assert check_autoencoder(measure_autoencoder(vae, make_volumes())) == [
        "The autoencoder gives numbers that are not finite (psnr, patch_psnr, ssim)."
    ]


def test_no_volume_and_no_report_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no volume to measure"):
        measure_autoencoder(make_autoencoder(), [])
    with pytest.raises(FileNotFoundError, match="write it with write_autoencoder_report"):
        read_autoencoder_report(tmp_path)
