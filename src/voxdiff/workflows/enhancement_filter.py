"""Which generated volumes are kept: agreement with the mask, distance from the real images, and outliers.

A filter judges one volume at a time and on its own, so that its verdict does not depend on which volumes were made
before it.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import torch

from voxdiff.metrics.copies import CopyMatches, CopyReferences, copy_distances
from voxdiff.metrics.privacy import copy_threshold
from voxdiff.metrics.segmentation import dice
from voxdiff.volumes import VolumeProcessor, load_volume
from voxdiff.workflows.masked_cases import MaskedCase, cases_hash

Segmenter = Callable[[nib.Nifti1Image], np.ndarray]
"""From an image to its label map (x, y, z) on the image's own grid."""

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_LEAST_SPREAD = 0.001  # what is nearly constant over real volumes may still vary this much
_PERCENTILES = (50, 90, 99)
_STATISTICS = (
    *("mean", "standard deviation", *(f"percentile {share}" for share in _PERCENTILES), "roughness", "sharpness"),
    "step between slices relative to steps within",
)
Reconstruction = Callable[[torch.Tensor], torch.Tensor]
"""From a volume (1, x, y, z) as the network sees it to the same through the model's autoencoder."""

_NEIGHBOURS = 7  # further images that a distance is compared with, as in copy_distances


@dataclass(frozen=True)
class Verdict:
    """What a filter says of one volume.

    Attributes:
        filter: Its name.
        value: What it measured.
        threshold: What the value was compared with.
        rejected: Whether the volume is left out.
        reason: One sentence if it is, None otherwise.
        details: Further plain values.
    """

    filter: str
    value: float
    threshold: float
    rejected: bool
    reason: str | None
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


class VolumeFilter(Protocol):
    """Judges a generated image beside its mask, both on one grid."""

    def settings(self) -> dict[str, Any]:
        """All that verdicts depend on, as plain values."""

    def __call__(self, image: nib.Nifti1Image, mask: nib.Nifti1Image) -> Verdict:
        """The verdict on one volume."""


class MaskAgreementFilter:
    """Rejects a volume in which a segmentation network does not find what the mask asked for.

    Args:
        segmenter: From an image to its label map. One that has a `fingerprint` is known by it in the manifest, another
            by its name.
        threshold: Least Dice.
        labels: The labels that are compared as one region; None is the mean Dice of the mask's labels above 0. Where the
            mask has none of the region, the share of its anatomy in which the segmenter rightly finds nothing counts.

    Raises:
        ValueError: The threshold is not in [0, 1], or a label is not above 0.
    """

    def __init__(self, segmenter: Segmenter, *, threshold: float = 0.5, labels: Sequence[int] | None = None) -> None:
        check_agreement(threshold=threshold, labels=labels)
        self.segmenter = segmenter
        self.threshold = float(threshold)
        self.labels = None if labels is None else [int(label) for label in labels]

    def settings(self) -> dict[str, Any]:
        """Threshold, labels, and which segmenter."""
        name = getattr(self.segmenter, "__qualname__", type(self.segmenter).__qualname__)
        known_as = getattr(self.segmenter, "fingerprint", name)
        return {"filter": "mask agreement", "threshold": self.threshold, "labels": self.labels, "segmenter": known_as}

    def __call__(self, image: nib.Nifti1Image, mask: nib.Nifti1Image) -> Verdict:
        """Dice between what the segmenter finds in the image and the mask."""
        wanted, found = np.asarray(mask.dataobj), np.asarray(self.segmenter(image))
        regions: list[Any] = [self.labels] if self.labels else [int(label) for label in np.unique(wanted) if label > 0]
        if not regions:  # nothing may be found where nothing was drawn
            regions = [[int(label) for label in np.unique(found) if label > 0]]
        value = float(np.mean([_agreement(found, wanted, region) for region in regions]))
        rejected = value < self.threshold
        reason = f"the segmenter's Dice with the mask is {value:.3f}, below {self.threshold:g}" if rejected else None
        return Verdict("mask agreement", value, self.threshold, rejected, reason)


def check_agreement(*, threshold: float = 0.5, labels: Sequence[int] | None = None) -> None:
    """Raise ValueError if a :class:`MaskAgreementFilter` cannot have this threshold or these labels."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold of the mask agreement is {threshold}; give a Dice score from 0 to 1.")
    if labels is not None and (not labels or min(labels) < 1):
        raise ValueError(f"The labels of the mask agreement are {list(labels)}; give those of one region, all above 0.")


def require_able(judge: MaskAgreementFilter, cases: Sequence[MaskedCase], *, number: int = 8) -> None:
    """Raise ValueError if the segmenter does not find the masks of the first real images either."""
    pairs = ((load_volume(case.image), case.load_mask()) for case in cases if case.image is not None)
    alike = ((image, mask) for image, mask in pairs if image.shape == mask.shape)
    values = [judge(image, mask).value for image, mask in itertools.islice(alike, number)]
    if values and np.mean(values) < judge.threshold:
        raise ValueError(
            f"The segmenter's Dice with the masks of {len(values)} real images is {np.mean(values):.3f}, below the "
            f"{judge.threshold:g} that generated ones must reach; train one longer, into another "
            "folder, or lower the threshold."
        )


def _agreement(found: np.ndarray, wanted: np.ndarray, region: Any) -> float:
    """Dice of a region; of one that was not asked for, the share of the labelled voxels that is free of it."""
    anatomy = np.count_nonzero(wanted > 0)
    if np.isin(wanted, region).any() or not anatomy:
        return dice(found, wanted, region)
    return max(0.0, 1 - np.count_nonzero(np.isin(found, region)) / anatomy)


class MemorisationFilter:
    """Rejects a volume that is nearer to one real image than real images of different subjects are to each other.

    The measure is the copy distance to the nearest real image over the mean distance to the next ones of other subjects
    (`CopyMatches.ratios` where each subject has one image). A volume made from a real mask is somewhat nearer to that
    mask's owner in any case: it has the same outline.

    Args:
        cases: The real images; those without an image are skipped.
        processor: The pipeline's, which brings real and generated volumes to one grid.
        threshold: Ratio below which a volume is rejected; None takes :func:`copy_threshold` of the real images' own
            ratios to those of other subjects.
        false_alarm_rate: How often a volume as far away as a real one may be rejected, without a threshold.

    Raises:
        ValueError: There are fewer than 3 subjects, without a threshold fewer than 6, the images have different grids,
            or the threshold is not above 0.
    """

    def __init__(
        self,
        cases: Sequence[MaskedCase],
        processor: VolumeProcessor,
        *,
        threshold: float | None = None,
        false_alarm_rate: float = 0.001,
    ) -> None:
        self.processor = processor
        self.cases = [case for case in cases if case.image is not None]
        subjects = list({case.subject: place for place, case in enumerate(self.cases)}.values())
        if len(subjects) < (6 if threshold is None else 3):
            raise ValueError(
                f"The memorisation filter has {len(self.cases)} real images of {len(subjects)} subjects; it needs 3 "
                "subjects, and 6 without a threshold."
            )
        if threshold is not None and not threshold > 0:
            raise ValueError(f"The threshold of the memorisation filter is {threshold:g}; give a ratio above 0.")
        volumes = _read_all(self.cases, processor)
        self.references = CopyReferences(volumes)
        if threshold is None:
            one_each = [volumes[place] for place in subjects]
            ratios = copy_distances(one_each, one_each, exclude_same_index=True).ratios
            self._asked = {"false_alarm_rate": false_alarm_rate}
            self.threshold = copy_threshold(ratios.numpy(), false_alarm_rate=false_alarm_rate)
        else:
            self._asked = {"threshold": float(threshold)}
            self.threshold = float(threshold)

    def settings(self) -> dict[str, Any]:
        """What was asked for, which the rounding of a computed threshold does not change, and the real images."""
        return {"filter": "memorisation", **self._asked, "references": cases_hash(self.cases)}

    def __call__(self, image: nib.Nifti1Image, mask: nib.Nifti1Image) -> Verdict:
        """The ratio of the nearest real image."""
        most_scans = max(Counter(case.subject for case in self.cases).values())
        volume = _read(image, self.processor)
        match = copy_distances([volume], self.references, candidates=_NEIGHBOURS + most_scans)
        value, nearest = self._ratio(match), self.cases[int(match.nearest[0])]
        rejected = value < self.threshold
        reason = f"{value:.3f} times as far from {nearest.name} as from other images, below {self.threshold:.3f}"
        details = {"nearest": nearest.name, "nearest_subject": nearest.subject, "distance": float(match.distances[0])}
        return Verdict("memorisation", value, self.threshold, rejected, reason if rejected else None, details)

    def _ratio(self, match: CopyMatches) -> float:
        """Of the first volume; other scans of the nearest subject would hide a copy."""
        subject = self.cases[int(match.nearest[0])].subject
        neighbours = zip(match.neighbours[0].tolist(), match.neighbour_distances[0].tolist(), strict=True)
        others = [distance for place, distance in neighbours if self.cases[place].subject != subject]
        return float(match.distances[0]) / max(float(np.mean(others[:_NEIGHBOURS])), float(np.finfo(np.float64).tiny))


class OutlierFilter:
    """Rejects a volume whose intensities are unlike those of the real images.

    Intensities are taken on a scale of 0 to 1 over the value range. For each of mean, standard deviation, three
    percentiles, roughness (the mean step between neighbours along x and y), sharpness (the mean change from step to step,
    relative to it) and the step between axial slices relative to it: the distance from the real images' median in robust
    standard deviations, of at least 0.001; the largest counts.

    An autoencoder smooths whatever it decodes: generated volumes are to be compared with `reconstruct`-ed real images, or
    all of them are outliers by their sharpness.

    On 60 simulated T1w brains of 64 voxels a side, beside 60 others, without `reconstruct`: a blur of 0.5 voxels is
    found in 24, of 0.7 in all, noise of 0.02 in 44, 20 % less signal in all; a gamma of 0.6 in none and of 1.8 in 14,
    which lie within what real contrasts differ by; 1 real one is rejected. Where contrasts differ more, or through an
    autoencoder, lost signal passes too.

    Args:
        cases: The real images; those without an image are skipped.
        processor: The pipeline's, which scales real and generated intensities alike.
        threshold: Robust standard deviations above which a volume is rejected.
        reconstruct: The model's autoencoder, through which the real images go first; None: as they are.

    Raises:
        ValueError: There are fewer than 5 images, or the threshold is not above 0.
    """

    def __init__(
        self,
        cases: Sequence[MaskedCase],
        processor: VolumeProcessor,
        *,
        threshold: float = 6.0,
        reconstruct: Reconstruction | None = None,
    ) -> None:
        self.cases = [case for case in cases if case.image is not None]
        if len(self.cases) < 5 or not threshold > 0:
            raise ValueError(
                f"The outlier filter has {len(self.cases)} real images and the threshold {threshold:g}; give at least 5, and "
                "a threshold above 0."
            )
        self.processor = processor
        self.threshold = float(threshold)
        self._reconstructed = reconstruct is not None
        volumes = (_read(case.image, processor) for case in self.cases)
        statistics = np.stack(
            [_statistics(reconstruct(volume) if reconstruct else volume, processor) for volume in volumes]
        )
        self.median = np.median(statistics, axis=0)
        spread = _MAD_TO_DEVIATION * np.median(np.abs(statistics - self.median), axis=0)
        self.spread = np.maximum(spread, _LEAST_SPREAD)

    def settings(self) -> dict[str, Any]:
        """The threshold and the real images."""
        asked = {"threshold": self.threshold, "reconstructed": self._reconstructed}
        return {"filter": "outlier", **asked, "references": cases_hash(self.cases)}

    def __call__(self, image: nib.Nifti1Image, mask: nib.Nifti1Image) -> Verdict:
        """The largest deviation, and what deviates."""
        deviations = np.abs(_statistics(_read(image, self.processor), self.processor) - self.median) / self.spread
        worst = int(deviations.argmax())
        value, statistic = float(deviations[worst]), _STATISTICS[worst]
        rejected = value > self.threshold
        reason = f"its {statistic} lies {value:.1f} robust standard deviations from the real images'"
        return Verdict(
            "outlier", value, self.threshold, rejected, reason if rejected else None, {"statistic": statistic}
        )


def _statistics(volume: torch.Tensor, processor: VolumeProcessor) -> np.ndarray:
    """What :data:`_STATISTICS` names, of (1, x, y, z)."""
    low, high = processor.value_range
    values = (volume[0].double().numpy() - low) / (high - low)
    x, y, z = (_mean_difference(values, axis) for axis in range(3))
    within = (x + y) / 2
    bends = (_mean_difference(values, 0, order=2) + _mean_difference(values, 1, order=2)) / 2
    sharpness, relative = (bends / within, z / within) if within else (0.0, 0.0)
    percentiles = np.percentile(values, _PERCENTILES)
    return np.array([values.mean(), values.std(), *percentiles, within, sharpness, relative])


def _mean_difference(values: np.ndarray, axis: int, order: int = 1) -> float:
    return float(np.abs(np.diff(values, order, axis=axis)).mean()) if values.shape[axis] > order else 0.0


def _read(volume: Any, processor: VolumeProcessor) -> torch.Tensor:
    """(1, x, y, z) as the network sees it."""
    return processor.preprocess(volume, unit="HU" if processor.unit == "HU" else None)[0][0]


def _read_all(cases: Sequence[MaskedCase], processor: VolumeProcessor) -> list[torch.Tensor]:
    volumes = [_read(case.image, processor) for case in cases]
    grids = sorted({tuple(volume.shape[1:]) for volume in volumes})
    if len(grids) > 1:
        raise ValueError(
            f"The real images have different grids ({', '.join(map(str, grids[:3]))}), on which copies cannot be searched; "
            "resample them to one, or use a model whose processor has a size."
        )
    return volumes
