"""A small segmentation network trained on real cases, which then judges whether generated images follow their masks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from voxdiff.metrics.downstream import TrainingSettings, segment, segmentation_patch, train_segmenter
from voxdiff.volume_grids import grid_map, regrid
from voxdiff.volumes import VolumeProcessor, atomic_path
from voxdiff.workflows.masked_cases import MaskedCase

CONFIG_FILE, WEIGHTS_FILE = "segmenter.json", "segmenter.safetensors"
_NETWORK_SETTINGS = ("spatial_dims", "in_channels", "out_channels", "channels", "strides", "num_res_units")


class CaseSegmenter:
    """From an image to its label map on the image's own grid.

    Args:
        network: MONAI's U-Net from one channel in [0, 1] to a score for each label.
        processor: Brings images to the network's grid, before they are scaled to [0, 1].
        settings: How the network was trained; its patch and precision are used again.

    Attributes:
        fingerprint: SHA-256 of the network and its processor.
    """

    def __init__(self, network: nn.Module, processor: VolumeProcessor, settings: TrainingSettings) -> None:
        self.network = network
        self.processor = processor
        self.training = settings
        digest = hashlib.sha256(json.dumps([self.processor.to_dict(), asdict(settings)]).encode())
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __call__(self, image: nib.Nifti1Image) -> np.ndarray:
        """The labels (x, y, z) that the network finds, uint8."""
        volume, geometry = _unit_range(image, self.processor)
        patch = segmentation_patch(volume, self.training)
        found = segment(self.network, volume, settings=self.training, patch=patch)
        to_model = grid_map(geometry.model_affine, geometry.affine)
        return regrid(found.float(), to_model, geometry.shape, fill=0, nearest=True)[0].numpy().astype(np.uint8)

    def save(self, folder: str | Path) -> None:
        """Write a folder that :meth:`load` reads; it appears when it is complete."""
        network = {
            name: getattr(self.network, "dimensions" if name == "spatial_dims" else name) for name in _NETWORK_SETTINGS
        }
        config = {"network": network, "processor": self.processor.to_dict(), "training": asdict(self.training)}
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            save_file(
                {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()},
                temporary / WEIGHTS_FILE,
            )

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> "CaseSegmenter":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: The folder holds no segmenter.
        """
        from monai.networks.nets import UNet

        folder = Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} has no {CONFIG_FILE}; give a folder that train_case_segmenter's result saved."
            )
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        network = UNet(**config["network"])
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        patch = config["training"]["patch_size"]
        settings = {**config["training"], "patch_size": patch and tuple(patch), "device": device}
        processor = VolumeProcessor.from_dict(config["processor"])
        return cls(network.to(device).eval(), processor, TrainingSettings(**settings))


def train_case_segmenter(
    cases: Sequence[MaskedCase],
    processor: VolumeProcessor,
    *,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> CaseSegmenter:
    """Train on the real images and their masks; cases without an image are skipped.

    Args:
        cases: Images with masks, whose labels below 0 (nnU-Net's "outside") count as background.
        processor: The generating pipeline's, so that both see one grid.
        settings: How long and how; None is ``TrainingSettings()``.
        seed: Of weights, order and patches.
        on_step: Called after each step.

    Raises:
        ValueError: No case has an image, no mask a label above 0, or the training diverged.
        ModuleNotFoundError: monai is not installed.
    """
    pairs = [_pair(case, processor) for case in cases if case.image is not None]
    highest = max((int(labels.max()) for _, labels in pairs), default=0)
    if highest < 1:
        raise ValueError(
            f"{len(pairs)} of the {len(cases)} cases have an image, and none a label above 0; give labelled images."
        )
    training = settings or TrainingSettings()
    network = train_segmenter(pairs, num_labels=highest + 1, settings=training, seed=seed, on_step=on_step)
    return CaseSegmenter(network, processor, training)


def _pair(case: MaskedCase, processor: VolumeProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, x, y, z) in [0, 1] and labels (1, x, y, z) on the processor's grid."""
    image, geometry = _unit_range(case.image, processor)
    mask = case.load_mask()
    values = torch.from_numpy(np.asarray(mask.dataobj, dtype=np.float32))[None]
    labels = regrid(values, grid_map(mask.affine, geometry.model_affine), geometry.model_shape, fill=0, nearest=True)
    return image, labels.clamp_min(0).to(torch.uint8)


def _unit_range(volume: Any, processor: VolumeProcessor) -> tuple[torch.Tensor, Any]:
    tensor, geometry = processor.preprocess(volume, unit="HU" if processor.unit == "HU" else None)
    low, high = processor.value_range
    return (tensor[0] - low) / (high - low), geometry
