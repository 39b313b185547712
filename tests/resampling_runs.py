"""What the tests of the data set tools share: cases, and a pipeline that costs nothing and shows what it was given."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from voxdiff import InformedSlicePipeline, InformedSliceUNetModel, VolumeProcessor
from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.schedulers import make_scheduler
from voxdiff.volume_files import load_volume, make_image
from voxdiff.workflows.masked_cases import MaskedCase

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (16, 12, 10)


def ball_labels(random, shape=SHAPE, radius=0.8):
    """A brain (4) with a tumour (1) at a random place."""
    axes = np.meshgrid(*(np.linspace(-1, 1, count) for count in shape), indexing="ij")
    labels = np.where(sum(axis**2 for axis in axes) < radius**2, 4, 0)
    centre = random.uniform(-0.3, 0.3, 3)
    tumour = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)) < 0.35**2
    return np.where(tumour & (labels > 0), 1, labels).astype(np.uint8)


def make_case(subject, seed=0, name="", shape=SHAPE, brightness=None, folder=None):
    """A smooth image that is bright where the mask has labels; files where a folder is given."""
    random = np.random.default_rng(seed)
    labels = ball_labels(random, shape)
    bright = random.uniform(0.3, 0.9) if brightness is None else brightness
    texture = random.normal(0, 0.03, shape)
    values = np.clip(
        np.where(np.isin(labels, (1, 3)), 1.0, np.where(labels > 0, bright, 0.0)) + texture * (labels > 0), 0, 1
    )
    volumes = {"image": make_image(values.astype(np.float32), AFFINE, unit="a.u.")}
    volumes["mask"] = make_image(labels, AFFINE, unit="label")
    if folder is not None:
        for kind, volume in volumes.items():
            nib.save(volume, folder / f"{name or subject}_{kind}.nii.gz")
            volumes[kind] = folder / f"{name or subject}_{kind}.nii.gz"
    return MaskedCase(subject, volumes["image"], volumes["mask"], name)


def make_cases(count, **options):
    return [make_case(f"s{place}", seed=place, **options) for place in range(count)]


class ShownPipeline:
    """As `InformedSlicePipeline` is called; its volume is the mask's labels, shaded by the informed slice and the seed.

    It keeps every call in `calls` and counts the masks it encoded. After `fail_at` calls it is interrupted.
    """

    def __init__(self, fail_at=None):
        self.volume_processor = VolumeProcessor(intensity="window", low=0.0, high=1.0, unit="a.u.")
        self.mask_encoder = MaskEncoder({"0": -1.0, "4": -0.5, "1": 1.0})
        self.config = {"overlap": 1, "position_rule": "inclusive"}
        self.takes_informed_slice = True
        self.components = {"unet": torch.nn.Linear(2, 2)}
        with torch.no_grad():
            self.components["unet"].weight.fill_(1.0)
            self.components["unet"].bias.zero_()
        self.device = torch.device("cpu")
        self.calls, self.encoded, self.fail_at = [], 0, fail_at

    def check_common_inputs(self, *, num_inference_steps, **arguments):
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}")

    def encode_masks(self, mask):
        self.encoded += 1
        return torch.from_numpy(np.asarray(mask.dataobj, dtype=np.float32))[None, None]

    def __call__(self, mask, *, informed_slice=None, mask_latents=None, generator, **arguments):
        if self.fail_at is not None and len(self.calls) >= self.fail_at:
            raise KeyboardInterrupt
        self.calls.append({"mask": mask, "informed_slice": informed_slice, **arguments})
        slices = informed_slice or [None] * len(mask)
        volumes, records = [], []
        for image, given, noise in zip(mask, slices, generator, strict=True):
            labels = np.asarray(image.dataobj)
            shade = 0.5 if given is None else float(np.asarray(load_volume(given).dataobj).mean())
            drawn = torch.rand(labels.shape, generator=noise).numpy()
            plain = np.select([labels == 1, labels == 3, labels > 0], [1.0, 0.1, 0.3 + shade], 0.0)
            values = plain * (0.95 + 0.05 * drawn)
            volumes.append(make_image(values.astype(np.float32), image.affine, unit="a.u."))
            records.append({"seed": noise.initial_seed(), "seconds": len(self.calls), "peak_memory_mb": 1.0})
        return SimpleNamespace(volumes=volumes, provenance=records)


def make_informed_slice_pipeline(latent_channels=2, in_channels=6, window=4, generator=False):
    """Tiny, with latents a quarter of the slices' area, as if trained: no layer is zero or the identity."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    unet = InformedSliceUNetModel(
        in_channels=in_channels,
        out_channels=latent_channels,
        block_out_channels=(4, 8),
        attention_levels=(False, True),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=2,
        window=window,
    )
    for parameter in unet.volumetric_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    processor = VolumeProcessor(intensity="window", low=0.0, high=1.0, unit="a.u.").to_dict()
    mask_values = {"0": -1.0, "4": -0.5, "3": 0.0, "1": 1.0}
    slice_unet = UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(4, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=4,
    )
    return InformedSlicePipeline(
        vae.eval(),
        unet.eval(),
        make_scheduler("gem-dpm++"),
        slice_unet=slice_unet.eval() if generator else None,
        processor=processor,
        mask_values=mask_values,
    )


def contents(folder):
    """Name → bytes of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
