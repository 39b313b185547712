"""The official 3D MedDiffusion networks, imported from a checkout to be measured beside ours; never copied.

The modules that they import but do not compute with are stubbed: Lightning, torchvision, torchio, and the perceptual
networks, which would download weights. They need einops, einops-exts and timm, which any folder on PYTHONPATH may hold:
``pip install --no-deps --target DIR einops einops-exts timm``. Of timm only its layers are imported.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import nn

CODES = 8192
STUBS = (
    "pytorch_lightning",
    "pytorch_lightning.callbacks",
    "torchio",
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.misc",
)


class LightningModule(nn.Module):
    """What the official autoencoder takes from Lightning: a count of steps, and a log that is not kept."""

    global_step = 1

    def save_hyperparameters(self) -> None:
        """Nothing is saved."""

    def log(self, *_: Any, **__: Any) -> None:
        """Nothing is logged."""


class NoPerceptualLoss(nn.Module):
    """In the place of LPIPS: zero, with nothing computed."""

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        return sample.new_zeros(())


def official_autoencoder(checkout: Path, factor: int, stage: int = 2) -> nn.Module:
    """The published 8x or 4x autoencoder, with its discriminator, random weights and a codebook that is filled."""
    with official_modules(checkout):
        network = importlib.import_module("AutoEncoder.model.PatchVolume").patchvolumeAE(_settings(factor, stage))
    # A random codebook like any other: its first training batch would replace it.
    network.codebook._need_init = False
    network.codebook.N.fill_(1)
    return network.eval()


def official_biflownet(checkout: Path, factor: int) -> nn.Module:
    """The published 8x or 4x BiFlowNet with random weights, the zero-initialised ones filled."""
    with official_modules(checkout):
        network = importlib.import_module("ddpm.BiFlowNet").BiFlowNet(
            dim=72,
            dim_mults=[1, 1, 2, 4, 8],
            channels=8,
            init_kernel_size=3,
            cond_classes=7,
            learn_sigma=False,
            use_sparse_linear_attn=[0, 0, 0, 1, 1],
            vq_size=64,
            num_mid_DiT=1,
            patch_size={8: 1, 4: 2}[factor],
        )
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def official_diffusion(checkout: Path) -> nn.Module:
    """The published diffusion of 1000 steps."""
    with official_modules(checkout):
        diffusion = importlib.import_module("ddpm.BiFlowNet").GaussianDiffusion
    return diffusion(channels=8, timesteps=1000, loss_type="l1")


@contextlib.contextmanager
def official_modules(checkout: Path) -> Iterator[None]:
    """The checkout and the stubs are importable inside; other code sees neither afterwards."""
    stubs = {name: MagicMock() for name in STUBS}
    stubs["pytorch_lightning"].LightningModule = LightningModule
    stubs["pytorch_lightning.callbacks"].BaseFinetuning = object
    stubs["AutoEncoder.model.lpips"] = MagicMock(LPIPS=NoPerceptualLoss)
    stubs["AutoEncoder.model.MedicalNetPerceptual"] = MagicMock()
    quiet = contextlib.redirect_stdout(io.StringIO())
    with patch.dict(sys.modules, stubs), patch.object(sys, "path", [str(checkout), *sys.path]), quiet:
        sys.modules.update(_timm_modules())
        yield


def _timm_modules() -> dict[str, ModuleType]:
    """timm's layers under the names by which they are imported, without its collection of models."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        raise ModuleNotFoundError(f"The official BiFlowNet needs timm, which is not installed; see {__file__}.")
    package = ModuleType("timm")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["timm"] = package
    layers = importlib.import_module("timm.layers")
    return {
        "timm.models": ModuleType("timm.models"),
        "timm.models.layers": layers,
        "timm.models.vision_transformer": layers,
    }


def _settings(factor: int, stage: int) -> SimpleNamespace:
    """What the published configuration files say of the network and its losses."""
    model = SimpleNamespace(
        embedding_dim=8,
        n_codes=CODES,
        n_hiddens=48,
        downsample=[factor] * 3,
        disc_channels=32,
        disc_layers=3,
        discriminator_iter_start=0,
        disc_loss_type="hinge",
        volume_gan_weight=2,
        l1_weight=4.0,
        gan_feat_weight=4,
        perceptual_weight=2,
        perceptual_3d=False,
        restart_thres=1.0,
        no_random_restart=False,
        norm_type="group",
        num_groups=24,
        stage=stage,
        lr=3e-5,
    )
    return SimpleNamespace(model=model, dataset=SimpleNamespace(image_channels=1, patch_size=64))
