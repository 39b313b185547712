"""What no tensor of an official checkpoint tells: grid, intensities, contrasts, order of conditions, source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxdiff.schedulers import make_scheduler
from voxdiff.volumes import VolumeProcessor

_CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
_BRATS_DATA = "BraTS 2023 adult glioma, native T1 (t1n)"
_BRATS_FILES = ("brats_unet_128_1200k.pt",)
_LIDC_DATA = "LIDC-IDRI chest CT"
_LIDC_FILES = ("lidc-idri_unet_128_1200k.pt", "lidc-idri_128_unet_1200k.pt")  # GitHub and the Hub card disagree
_CWDM_FILES = {"t1n": ("t1_gen.pt",), "t1c": ("t1ce_gen.pt",), "t2w": ("t2_gen.pt",), "t2f": ("flair_gen.pt",)}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights that a preset describes come from.

    Args:
        repository: Hub repository of the method's authors.
        paper: arXiv identifier.
        data: What the model was trained on.
        files: Names of the published file; none where the preset serves a user's own training.
        licence: Hub identifier of the licence that the repository's card states for its files.
    """

    repository: str
    paper: str
    data: str
    files: tuple[str, ...] = ()
    licence: str = "mit"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one official model was trained.

    Args:
        converter: Name of the converter it belongs to.
        expects: What the tensors must say, else the preset is refused.
        processor: The volumes that the model makes and takes.
        output_volumes: Name of each volume it makes -> position.
        condition_volumes: Name of each volume it takes -> position.
        source: Where the weights come from.
        scheduler: A preset of `voxdiff.schedulers`.
    """

    converter: str
    expects: Mapping[str, Any]
    processor: VolumeProcessor
    output_volumes: Mapping[str, int]
    condition_volumes: Mapping[str, int] | None = None
    source: Source
    scheduler: str = "wdm-ddpm"


def _brats(size: int) -> VolumeProcessor:
    # BraTS files are stored LPS, and the official loader takes their arrays as they are.
    return VolumeProcessor(
        orientation="LPS", spacing=[256 / size] * 3, size=[size] * 3, intensity="percentile", low=0.1, high=99.9
    )


def _lidc(size: int) -> VolumeProcessor:
    # dicom2nifti writes LAS. Intensities were scaled a volume at a time, so HU cannot be had back.
    return VolumeProcessor(
        orientation="LAS",
        spacing=[256 / size] * 3,
        size=[size] * 3,
        intensity="percentile",
        low=0,
        high=99.9,
        clip_below=-1000,
    )


def _wdm(size: int, processor: VolumeProcessor, volume: str, data: str, files: tuple[str, ...] = ()) -> Preset:
    return Preset(
        converter="wdm",
        expects={"in_channels": 8, "out_channels": 8, "levels": {128: 5, 256: 6}[size], "skip_mode": "additive"},
        processor=processor,
        output_volumes={volume: 0},
        source=Source(repository="pfriedri/wdm-3d", paper="2402.19043", data=data, files=files),
    )


def _cwdm(target: str) -> Preset:
    conditions = [contrast for contrast in _CONTRASTS if contrast != target]
    return Preset(
        converter="cwdm",
        expects={"in_channels": 32, "out_channels": 8, "levels": 5, "skip_mode": "concat"},
        processor=VolumeProcessor(
            orientation="LPS",
            spacing=(1, 1, 1),
            size=(224, 224, 160),
            intensity="percentile",
            low=0.1,
            high=99.9,
            value_range=(0, 1),
            padding="end",
        ),
        output_volumes={target: 0},
        condition_volumes={contrast: position for position, contrast in enumerate(conditions)},
        source=Source(
            repository="pfriedri/cwdm",
            paper="2411.17203",
            data="BraTS 2023 adult glioma, all four contrasts",
            files=_CWDM_FILES[target],
        ),
    )


PRESETS: dict[str, Preset] = {
    "brats-128": _wdm(128, _brats(128), "t1n", _BRATS_DATA, _BRATS_FILES),
    "lidc-128": _wdm(128, _lidc(128), "ct", _LIDC_DATA, _LIDC_FILES),
    "brats-256": _wdm(256, _brats(256), "t1n", _BRATS_DATA),
    "lidc-256": _wdm(256, _lidc(256), "ct", _LIDC_DATA),
    **{f"cwdm-{contrast}": _cwdm(contrast) for contrast in _CONTRASTS},
}
"""Preset name -> how that model was trained."""


def find_preset(name: str, converter: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: There is no such preset, or it belongs to another converter.
    """
    allowed = [key for key, preset in PRESETS.items() if preset.converter == converter]
    if not allowed:
        methods = {"med": ("med", "3D MedDiffusion"), "fdm": ("fdm", "FDM")}
        method, source = methods.get(converter.partition("-")[0], ("gem", "GEM-3D"))
        raise ValueError(
            f"There are no presets for {converter!r}; with voxdiff.convert_state_dict it becomes a model, and `voxdiff "
            f"convert {method}` makes a pipeline of the checkpoints of {source}."
        )
    if name not in allowed:
        problem = f"belongs to {PRESETS[name].converter!r} models" if name in PRESETS else "is unknown"
        raise ValueError(f"The preset {name!r} {problem}; for {converter!r} choose one of {', '.join(allowed)}.")
    return PRESETS[name]


def check_preset(name: str, config: Mapping[str, Any]) -> None:
    """Compares a preset with the configuration that was read off the tensors.

    Raises:
        ValueError: They contradict each other.
    """
    clashes = _clashes(PRESETS[name], config)
    if clashes:
        converter = PRESETS[name].converter
        fitting = [
            key for key, preset in PRESETS.items() if preset.converter == converter and not _clashes(preset, config)
        ]
        advice = f"presets that fit are {', '.join(fitting)}" if fitting else "no preset fits this checkpoint"
        raise ValueError(f"The preset {name!r} contradicts the checkpoint: {'; '.join(clashes)}; {advice}.")


def _clashes(preset: Preset, config: Mapping[str, Any]) -> list[str]:
    facts = {**config, "levels": len(config["block_out_channels"])}
    return [
        f"{key} is {wanted!r} in the preset and {facts[key]!r} in the tensors"
        for key, wanted in preset.expects.items()
        if facts[key] != wanted
    ]


def build_pipeline(name: str, unet: Any) -> Any:
    """The preset's pipeline around a converted network.

    Raises:
        ValueError: The preset contradicts the network's configuration.
    """
    from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline  # diffusers' pipelines are slow

    check_preset(name, unet.config)
    preset = PRESETS[name]
    return WaveletDiffusionPipeline(
        unet=unet,
        scheduler=make_scheduler(preset.scheduler),
        processor=preset.processor.to_dict(),
        wavelet="haar",
        band_scales=[3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        output_volumes=dict(preset.output_volumes),
        condition_volumes=dict(preset.condition_volumes) if preset.condition_volumes else None,
    )
