import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens import load_golden

from voxdiff.hub.convert import convert_checkpoint, convert_state_dict
from voxdiff.hub.presets import PRESETS, build_pipeline, check_preset, find_preset

CONFIG = {"in_channels": 8, "out_channels": 8, "block_out_channels": (64,) * 5, "skip_mode": "additive"}
CONTRASTS = ["t1n", "t1c", "t2w", "t2f"]


@pytest.fixture(scope="module")
def scan():
    """A volume laid out as BraTS stores it: 240 x 240 x 155 at 1 mm, LPS, zero outside a box."""
    values = np.zeros((240, 240, 155), np.float32)
    values[50:190, 30:211, 3:150] = np.random.default_rng(0).gamma(4, 100, (140, 181, 147))
    affine = np.diag([-1.0, -1, 1, 1])
    affine[1, 3] = 239
    return nib.Nifti1Image(values, affine)


def scaled(scan):
    """WDM's intensities: clipped to the 0.1 % and 99.9 % quantiles of the whole volume, then 0 to 1."""
    values = scan.get_fdata(dtype=np.float32)
    low, high = np.quantile(values, [0.001, 0.999])
    return torch.from_numpy((values.clip(low, high) - low) / (high - low)).float()[None, None]


def test_there_is_a_preset_for_every_published_file():
    published = {name for preset in PRESETS.values() for name in preset.source.files}
    assert published == {
        "brats_unet_128_1200k.pt",
        "lidc-idri_unet_128_1200k.pt",
        "lidc-idri_128_unet_1200k.pt",
        "t1_gen.pt",
        "t1ce_gen.pt",
        "t2_gen.pt",
        "flair_gen.pt",
    }
    own = ["brats-256", "lidc-256"]
    assert list(PRESETS) == ["brats-128", "lidc-128", *own, *(f"cwdm-{contrast}" for contrast in CONTRASTS)]
    assert not any(PRESETS[name].source.files for name in own)


@pytest.mark.parametrize("name", PRESETS)
def test_the_grid_fits_the_depth_of_the_network(name):
    preset = PRESETS[name]
    assert all(count % 2 ** preset.expects["levels"] == 0 for count in preset.processor.size)


@pytest.mark.parametrize("target", CONTRASTS)
def test_conditions_come_in_the_published_order(target):
    conditions = PRESETS[f"cwdm-{target}"].condition_volumes
    assert sorted(conditions, key=conditions.get) == [contrast for contrast in CONTRASTS if contrast != target]
    assert PRESETS[f"cwdm-{target}"].output_volumes == {target: 0}


def test_brats_volumes_are_prepared_as_for_training(scan):
    expected = F.avg_pool3d(F.pad(scaled(scan), (50, 51, 8, 8, 8, 8)), 2) * 2 - 1
    received, _ = PRESETS["brats-128"].processor.preprocess(scan)
    torch.testing.assert_close(received, expected, atol=1e-4, rtol=0)


def test_cwdm_volumes_are_prepared_as_for_training(scan):
    expected = F.pad(scaled(scan), (0, 5))[:, :, 8:-8, 8:-8]
    received, _ = PRESETS["cwdm-t1n"].processor.preprocess(scan)
    torch.testing.assert_close(received, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change, clash, fitting",
    [
        ({"in_channels": 32}, "in_channels is 8 in the preset and 32 in the tensors", "no preset fits"),
        ({"block_out_channels": (64,) * 6}, "levels is 5 in the preset and 6", "brats-256, lidc-256"),
        ({"skip_mode": "concat"}, "skip_mode is 'additive' in the preset and 'concat'", "no preset fits"),
    ],
)
def test_a_preset_that_contradicts_the_tensors_is_refused(change, clash, fitting):
    check_preset("brats-128", CONFIG)
    with pytest.raises(ValueError, match=f"{clash}.*{fitting}") as error:
        check_preset("brats-128", {**CONFIG, **change})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_contradiction_leaves_no_folder(tmp_path):
    torch.save(load_golden("wdm_unet")[1], tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="presets that fit are brats-128, lidc-128"):
        convert_checkpoint("wdm", tmp_path / "weights.pt", tmp_path / "out", preset="brats-256", norm_num_groups=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, problem", [("brats", "is unknown"), ("cwdm-t1n", "belongs to 'cwdm' models")])
def test_a_preset_of_another_converter_is_refused(name, problem):
    with pytest.raises(ValueError, match=f"{problem}; for 'wdm' choose one of brats-128, lidc-128"):
        find_preset(name, "wdm")


@pytest.mark.parametrize("name", ["brats-128", "lidc-128", "cwdm-t2w"])
def test_the_pipeline_is_built_as_published(name):
    preset = PRESETS[name]
    unet = convert_state_dict(preset.converter, load_golden(f"{preset.converter}_unet")[1], norm_num_groups=2)
    pipe = build_pipeline(name, unet)
    assert pipe.config.band_scales == [3, 1, 1, 1, 1, 1, 1, 1] and pipe.config.wavelet == "haar"
    assert pipe.volume_processor == preset.processor
    config = pipe.scheduler.config
    assert (config.prediction_type, config.variance_type, config.clip_sample) == ("sample", "fixed_large", False)
