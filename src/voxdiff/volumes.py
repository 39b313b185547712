"""The volume contract: the only door between medical image files and tensors.

A volume tensor is `(batch, channels, x, y, z)`, the NIfTI array's own axes in the model's orientation. Files are read
and written in `voxdiff.volume_files`, grids are handled in `voxdiff.volume_grids`, intensities in
`voxdiff.volume_intensities`; what is public there can be imported from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import torch

from voxdiff.volume_files import (
    atomic_path,
    check_values,
    intensity_unit,
    load_volume,
    make_image,
    save_volumes,
    three_plane_png,
)
from voxdiff.volume_grids import (
    VolumeGeometry,
    centred_affine,
    freeze_affine,
    grid_map,
    model_grid,
    orientation_matrix,
    regrid,
)
from voxdiff.volume_intensities import IntensityRule, check_choice, check_numbers

__all__ = [
    "VolumeGeometry",
    "VolumeProcessor",
    "atomic_path",
    "intensity_unit",
    "load_volume",
    "save_volumes",
    "three_plane_png",
]

VolumeInput = str | Path | nib.spatialimages.SpatialImage | np.ndarray | torch.Tensor
OutputType = Literal["nifti", "pt", "np", "latent"]


@dataclass(frozen=True, kw_only=True)
class VolumeProcessor(IntensityRule):
    """Turns volumes into what a network sees, and back.

    Intensities are scaled on the volume's own voxels first. Then the volume is brought to the orientation, resampled to
    the spacing (the mean over a voxel's extent where the model's grid is coarser, trilinear where it is finer; labels
    by nearest neighbour), and cropped or padded about its centre, all three in one step.

    Args:
        orientation: Axis code of the model's grid, any of the 48.
        spacing: Voxel size in mm along the model's x, y, z; None keeps the volume's own.
        size: The model's grid (x, y, z); None keeps what orientation and spacing give.
        padding: ``"center"`` pads a volume that is too small on both sides, an odd voxel at the end; ``"end"`` pads at
            the end only.
        intensity: ``"window"``: `low` to `high` in `unit`, linear, inverted exactly inside the window.
            ``"percentile"``: from percentile `low` (0.1) to percentile `high` (99.9) of each volume.
            ``"minmax"``: from each volume's lowest to its highest value.
            ``"labels"``: whole numbers 0 to `high`, at most 255, never interpolated.
        low: Lower end, see `intensity`.
        high: Upper end, see `intensity`.
        inside: Where the percentiles are taken: the whole ``"volume"``, background included, or its ``"foreground"``,
            the voxels that differ from the background (from the volume's lowest value if no background is named).
        clip_below: ``"percentile"`` and ``"minmax"``: lower values are first raised to this one, in the volume's unit.
        value_range: What the network sees.
        unit: Unit of the values that come out: HU under ``"window"`` unless another is named, "a.u." in [0, 1] under
            ``"percentile"`` and ``"minmax"``, "label" under ``"labels"``.
        background: Value outside the field of view, in the unit of the volumes that come in; None is the lower end of
            the intensity rule.

    Raises:
        ValueError: A value is impossible, or would not be read under the intensity rule.

    Example:
        >>> processor = VolumeProcessor(intensity="window", low=-1000, high=1000, spacing=(2, 2, 2), size=(64, 64, 64))
        >>> tensor, geometry = processor.preprocess(torch.full((64, 64, 60), -500.0))
        >>> tensor.shape, tensor[0, 0, 0, 0, 30].item(), tensor[0, 0, 0, 0, 0].item()
        (torch.Size([1, 1, 64, 64, 64]), -0.5, -1.0)
        >>> image = processor.postprocess(tensor, geometries=[geometry])[0]
        >>> image.shape, float(image.dataobj[0, 0, 0])
        ((64, 64, 60), -500.0)
    """

    orientation: str = "RAS"
    spacing: Sequence[float] | None = None
    size: Sequence[int] | None = None
    padding: str = "center"

    def __post_init__(self) -> None:
        super().__post_init__()
        orientation_matrix(self.orientation)
        check_choice("padding", self.padding, ("center", "end"))
        if self.spacing is not None:
            wanted = "three positive values in mm"
            self._set("spacing", check_numbers("spacing", self.spacing, 3, wanted))
            if min(self.spacing) <= 0:
                raise ValueError(f"spacing is {list(self.spacing)}; give {wanted}.")
        if self.size is not None:
            wanted = "three positive whole numbers (x, y, z)"
            size = check_numbers("size", self.size, 3, wanted)
            if min(size) < 1 or any(count % 1 for count in size):
                raise ValueError(f"size is {list(size)}; give {wanted}.")
            self._set("size", tuple(int(count) for count in size))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values: strings, numbers, None, and lists of numbers."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VolumeProcessor":
        """The processor that `to_dict` described.

        Raises:
            ValueError: The configuration has an unknown key or an impossible value.
        """
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(config) - set(allowed))
        if unknown:
            raise ValueError(
                f"The volume processor's configuration has {', '.join(map(repr, unknown))}; "
                f"it may have {', '.join(allowed)}."
            )
        return cls(**config)

    def model_affine(self, shape: Sequence[int]) -> np.ndarray:
        """Affine of a volume made from nothing on a grid of this shape: its centre lies at 0 mm.

        Without a spacing in the configuration a voxel is 1 mm.
        """
        return centred_affine(shape, self.orientation, self.spacing)

    def preprocess(
        self, volume: VolumeInput, *, unit: str | None = None, background: float | None = None
    ) -> tuple[torch.Tensor, VolumeGeometry]:
        """Makes the tensor that the network sees.

        Args:
            volume: A path, a `nibabel` image, or an array or tensor `(x, y, z)` that already has the model's
                orientation and spacing.
            unit: The volume's unit, where the caller knows it.
            background: The volume's value outside the patient, in its own unit, instead of the processor's.

        Returns:
            The tensor `(1, 1, x, y, z)`, float32 in `value_range`, on the CPU; and what `postprocess` needs to undo it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The volume is broken, not 3D, empty, not finite, without contrast, or not in the model's unit.
        """
        image, name = self._open(volume)
        stored = np.asarray(image.dataobj)
        values = stored.astype(np.float32)
        self.check_unit(values, name, unit, background)
        background = self.background if background is None else background
        low, high = self.limits(values, name, background)
        outside = float(self.encode(np.array(low if background is None else background, np.float32), low, high))

        grid, shape = model_grid(image.affine, image.shape, self.orientation, self.spacing, self.size, self.padding)
        tensor = regrid(
            torch.from_numpy(self.encode(values, low, high))[None],
            grid_map(image.affine, grid),
            shape,
            fill=outside,
            nearest=self.intensity == "labels",
        )
        geometry = VolumeGeometry(
            shape=cast(tuple[int, int, int], image.shape),
            affine=freeze_affine(image.affine),
            model_shape=shape,
            model_affine=freeze_affine(grid),
            low=low,
            high=high,
            background=self.decode(torch.tensor(outside)).item(),
            dtype=str(stored.dtype),
            space_code=int(image.header["sform_code"]) or int(image.header["qform_code"]) or 2,
        )
        return tensor[None], geometry

    def postprocess(
        self,
        volumes: torch.Tensor,
        *,
        output_type: OutputType = "nifti",
        geometries: Sequence[VolumeGeometry] | None = None,
    ) -> Any:
        """Makes what the user gets from what the network made.

        Args:
            volumes: `(batch, channels, x, y, z)` in `value_range`; what lies beyond the range is clipped.
            output_type: ``"nifti"``: a list of images, float32 (labels uint8), 4D where there are several channels.
                ``"pt"`` and ``"np"``: `(batch, channels, x, y, z)` in the output unit on the model's grid, a tensor
                through which gradients flow, or an array. ``"latent"``: `volumes` as they are.
            geometries: One a volume, from `preprocess`: the images then lie on the grids of the inputs, with the
                background value where the model's grid does not reach. Without, the model's grid is centred at 0 mm.
                The other output types stay on the model's grid and need none.

        Raises:
            ValueError: The output type is unknown, or `volumes` is not 5D, not finite, or does not fit the geometries.
        """
        check_choice("output_type", output_type, ("nifti", "pt", "np", "latent"))
        if output_type == "latent":
            return volumes
        if volumes.ndim != 5:
            raise ValueError(f"volumes has shape {tuple(volumes.shape)}; give (batch, channels, x, y, z).")
        if geometries is not None and len(geometries) != len(volumes):
            raise ValueError(f"{len(geometries)} geometries came with {len(volumes)} volumes; give one a volume.")
        if output_type == "nifti":
            values = self.decode(volumes.detach().cpu())
            if not torch.isfinite(values).all():
                raise ValueError("The model made NaN or infinite voxels; sample in float32, or check its weights.")
            return [self._image(volume, geometries[i] if geometries else None) for i, volume in enumerate(values)]
        values = self.decode(volumes)
        if self.intensity == "labels":
            values = values.to(torch.uint8)
        return values if output_type == "pt" else values.detach().cpu().numpy()

    def _open(self, volume: VolumeInput) -> tuple[nib.Nifti1Image, str]:
        """The volume as an image, and what to call it in an error."""
        if isinstance(volume, np.ndarray | torch.Tensor):
            name = "The array" if isinstance(volume, np.ndarray) else "The tensor"
            values = volume if isinstance(volume, np.ndarray) else volume.detach().cpu().numpy()
            check_values(values, name)
            return make_image(values, self.model_affine(values.shape)), name
        return load_volume(volume), f"The volume {str(volume)!r}" if isinstance(volume, str | Path) else "The image"

    def _image(self, values: torch.Tensor, geometry: VolumeGeometry | None) -> nib.Nifti1Image:
        """One image from `(channels, x, y, z)` in the output unit."""
        shape, labels = tuple(values.shape[1:]), self.intensity == "labels"
        affine, space_code = self.model_affine(shape), 2
        if geometry is not None:
            if shape != geometry.model_shape:
                raise ValueError(
                    f"A volume has the grid {shape}, but its geometry belongs to the grid {geometry.model_shape}; pass "
                    "the geometry that preprocess returned with its tensor."
                )
            affine, space_code = np.array(geometry.affine), geometry.space_code
            to_model = grid_map(geometry.model_affine, geometry.affine)
            values = regrid(values, to_model, geometry.shape, fill=geometry.background, nearest=labels)
        array = values[0].numpy() if len(values) == 1 else values.permute(1, 2, 3, 0).numpy()
        array = np.ascontiguousarray(array, dtype=np.uint8 if labels else np.float32)
        return make_image(array, affine, unit=self.unit, space_code=space_code)
