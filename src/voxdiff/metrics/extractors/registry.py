"""The extractors by name, as `voxdiff evaluate --extractor` takes them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from voxdiff.metrics.extractors import medicalnet
from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.metrics.extractors.deepbet import load_deepbet
from voxdiff.metrics.extractors.radimagenet import NAME as RADIMAGENET
from voxdiff.metrics.extractors.radimagenet import build_radimagenet, load_radimagenet
from voxdiff.metrics.extractors.transformers_vision import PREFIX, load_transformers
from voxdiff.metrics.extractors.weights import StateDict, convert_weights

COHORT = ("cohort-3d", "cohort-2d")
MEDICALNET = {f"medicalnet-resnet{depth}": depth for depth in reversed(medicalnet.DEPTHS)}
EXTRACTORS = (*COHORT, "deepbet", *MEDICALNET, RADIMAGENET, f"{PREFIX}<folder or Hub id>")


def load_extractor(
    name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """An extractor by name.

    Args:
        name: one of `EXTRACTORS`. `NAME=PATH` gives the weight file too; `NAME:VARIANT` chooses the input rule of
            MedicalNet ("medicalnet-resnet50:unit") or the grid of deepbet ("deepbet:128").
        weights: safetensors file, for the extractors whose weights neither voxdiff nor a package ships.
        device: where it runs.

    Raises:
        ValueError: the name or variant is unknown, weights are given twice or to an extractor that takes none, or they
            do not fit.
        FileNotFoundError: the weights are missing.
        ModuleNotFoundError: the package that ships the weights is not installed.
    """
    if name.startswith(PREFIX):
        _refuse(weights, name)
        return load_transformers(name.removeprefix(PREFIX), device=device)
    asked, separator, path = name.partition("=")
    if separator and weights is not None:
        raise ValueError(f"Weights were given twice, in {name!r} and as {str(weights)!r}; give them once.")
    weights = path if separator else weights
    asked, _, variant = asked.partition(":")
    if asked in MEDICALNET:
        rule = variant or "zscore"
        return medicalnet.load_medicalnet(MEDICALNET[asked], weights=weights, input_rule=rule, device=device)
    if asked == "deepbet":
        _refuse(weights, asked)
        return load_deepbet(size=_grid(variant), device=device)
    if asked in (*COHORT, RADIMAGENET) and variant:
        raise ValueError(f"The extractor {asked} was given the variant {variant!r}; it has none, leave it out.")
    if asked == RADIMAGENET:
        return load_radimagenet(weights=weights, device=device)
    if asked in COHORT:
        from voxdiff.metrics.extractors.cohort import load_cohort_extractor

        _refuse(weights, asked)
        return load_cohort_extractor(asked).to(device)
    raise ValueError(f"There is no extractor {asked!r}; known are {', '.join(EXTRACTORS)}.")


def convertible() -> dict[str, Callable[[StateDict], object]]:
    """Networks whose publisher gives pickles, and what checks that converted tensors fit."""
    from voxdiff.metrics.perceptual import HEADS, VGG, build_heads, build_vgg16

    checks: dict[str, Callable[[StateDict], object]] = {
        name: partial(medicalnet.build_medicalnet, depth) for name, depth in MEDICALNET.items()
    }
    return {**checks, RADIMAGENET: build_radimagenet, VGG.name: build_vgg16, HEADS.name: build_heads}


def convert_extractor_weights(name: str, source: str | Path, target: str | Path) -> list[str]:
    """Write a publisher's checkpoint as the safetensors file that :func:`load_extractor` reads.

    Args:
        name: one of :func:`convertible`.
        source: the publisher's file.
        target: `.safetensors` file to write.

    Returns:
        The publisher's names of the tensors left out: heads and batch counters.

    Raises:
        ValueError: the name is unknown, or the checkpoint is not this network's.
        FileNotFoundError: there is no such checkpoint.
    """
    checks = convertible()
    if name not in checks:
        raise ValueError(f"There are no weights to convert for {name!r}; known are {', '.join(checks)}.")
    return convert_weights(source, target, checks[name])


def _grid(variant: str) -> int:
    if variant and not variant.isdecimal():
        raise ValueError(f"deepbet was given the variant {variant!r}; give its grid in voxels a side, as deepbet:128.")
    return int(variant or 64)


def _refuse(weights: str | Path | None, name: str) -> None:
    if weights is not None:
        raise ValueError(f"The extractor {name} was given {str(weights)!r}, but brings its own weights; leave it out.")
