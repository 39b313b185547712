"""Fixtures that every test shares: tiny networks and pipelines (under 50k parameters, at most 32 voxels a side)."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

from voxdiff import VolumeProcessor, WaveletDiffusionPipeline, WaveletUNet3DModel
from voxdiff.schedulers import make_scheduler


def make_unet(in_channels=8, out_channels=8, **config):
    """A two-level U-Net whose output is not zero at initialisation."""
    torch.manual_seed(0)
    config = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, **config}
    unet = WaveletUNet3DModel(in_channels, out_channels, **config)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


def make_processor(**changes):
    return VolumeProcessor(**{"size": (16, 16, 8), "spacing": (2, 2, 3), "intensity": "minmax", **changes})


def make_pipeline(unet=None, scheduler="wdm-dpm++", processor=None, **config):
    processor = (processor or make_processor()).to_dict()
    pipe = WaveletDiffusionPipeline(unet or make_unet(), make_scheduler(scheduler), processor=processor, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def unet():
    return make_unet()


@pytest.fixture
def pipe():
    return make_pipeline()


@pytest.fixture
def translation_pipe():
    """Two contrasts in, one out, as cWDM."""
    unet = make_unet(in_channels=24, skip_mode="concat")
    return make_pipeline(unet, output_volumes={"t1n": 0}, condition_volumes={"t2w": 1, "t1c": 0})


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_threads():
    """A benchmark sets its number of threads for the whole process, and sums differ in the last bit with it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
