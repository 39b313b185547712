from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from voxdiff.training.slice_volumes import SliceVolumes
from voxdiff.workflows.autoencoder_report import REPORT_FILE
from voxdiff.workflows.slice_autoencoder_report import (
    check_slice_autoencoder,
    describe_report,
    read_slice_autoencoder_report,
    require_sound_autoencoder,
    save_slice_reconstructions,
    write_slice_autoencoder_report,
)


class Source:
    """Images of noise with masks of halves; it counts what was read."""

    mask_values = {0: -1.0, 1: 1.0}

    def __init__(self, count=20):
        self.count, self.read = count, set()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.add(index)
        generator = torch.Generator().manual_seed(index)
        mask = torch.zeros(16, 12, 5, dtype=torch.uint8)
        mask[: 4 + index] = 1
        return {"image": torch.rand(1, 16, 12, 5, generator=generator) * 2 - 1, "mask": mask}


def make_vae(scaling_factor=0.5):
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=2,
        scaling_factor=scaling_factor,
    )


def test_images_and_masks_are_measured_apart_before_the_scaling_factor(tmp_path):
    volumes, vae = SliceVolumes(Source(), [3, 5]), make_vae()
    findings = write_slice_autoencoder_report(vae, volumes, tmp_path)
    assert read_slice_autoencoder_report(tmp_path) == findings | {
        name: {**found, "compression": [2, 2, 1]} for name, found in findings.items()
    }
    with torch.no_grad():
        images = torch.cat([volumes[place]["image"].permute(3, 0, 1, 2) for place in range(2)])
        posterior = vae.encode(images).latent_dist.mode()
        reconstruction = vae.decode(posterior).sample.clamp(-1, 1)
    errors = (reconstruction - images).square().unflatten(0, (2, 5)).mean((1, 2, 3, 4))
    psnr = (10 * (4 / errors).log10()).mean()
    assert findings["image"]["psnr"] == pytest.approx(psnr.item(), abs=1e-3)
    assert findings["image"]["latent_std"] == pytest.approx(posterior.std(correction=0).item(), rel=1e-3)
    assert findings["mask"]["psnr"] != findings["image"]["psnr"]
    blurred = findings["image"]["blurred_psnr"]
    assert blurred == pytest.approx(
        write_slice_autoencoder_report(make_vae(2.0), volumes, tmp_path)["image"]["blurred_psnr"]
    )
    assert (tmp_path / "masks" / "autoencoder_report.png").exists()
    assert "images PSNR" in describe_report(findings)
    assert "masks PSNR" in describe_report(findings)


def test_problems_say_what_they_were_found_on(tmp_path):
    findings = write_slice_autoencoder_report(make_vae(), SliceVolumes(Source(), [0, 1]), tmp_path)
    problems = check_slice_autoencoder(findings)
    assert [problem.split(":")[0] for problem in problems if "blurred" in problem] == ["On images", "On masks"]
    good = {name: {**found, "psnr": 60.0} for name, found in findings.items()}
    assert check_slice_autoencoder(good) == []


def test_a_broken_autoencoder_is_refused_unless_it_is_ignored(tmp_path, capsys):
    source = Source()
    with pytest.raises(ValueError, match="not fit for diffusion: On images: Its PSNR"):
        require_sound_autoencoder(make_vae(), source, tmp_path)
    assert source.read == set(range(0, 20, 3))
    with pytest.raises(ValueError, match="not fit for diffusion"):
        require_sound_autoencoder(make_vae(), None, tmp_path)
    require_sound_autoencoder(make_vae(), source, tmp_path, ignore=True)
    assert capsys.readouterr().out.count("autoencoder: images PSNR") == 3
    (tmp_path / REPORT_FILE).unlink()
    require_sound_autoencoder(make_vae(), None, tmp_path, ignore=True)
    with pytest.raises(FileNotFoundError, match=r"autoencoder_report\.json does not exist"):
        require_sound_autoencoder(make_vae(), None, tmp_path)


def test_the_picture_has_a_row_a_volume(tmp_path):
    vae = make_vae().train()
    path = save_slice_reconstructions(vae, [Source()[place]["image"] for place in range(2)], tmp_path, "step.png")
    assert Path(path).exists()
    assert vae.training
