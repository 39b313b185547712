"""One call that measures a set of synthetic volumes by the whole protocol; see :func:`evaluate`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics import anchors, pictures
from voxdiff.metrics.evaluation_sets import (
    EvaluationOptions,
    EvaluationSets,
    Volumes,
    load_extractors,
    make_protocol,
    open_sets,
    prepare_sets,
)
from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.metrics.features import PLANES, FeatureSet, extract_features
from voxdiff.metrics.paired import write_csv
from voxdiff.metrics.perceptual import PerceptualBackbone, load_perceptual
from voxdiff.metrics.protocol import Protocol
from voxdiff.metrics.report import Report
from voxdiff.metrics.sections import diversity, factors, pairs, privacy, subgroups, unpaired
from voxdiff.metrics.set_checks import clipping_warnings
from voxdiff.metrics.stages import Stage, no_stage
from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.volumes import VolumeProcessor


def evaluate(
    real: Volumes,
    synthetic: Volumes,
    *,
    train: Volumes | None = None,
    masks: str | Path | None = None,
    labels: tuple[str | Path, str | Path] | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    options: EvaluationOptions | None = None,
    on_stage: Stage | None = None,
) -> Report:
    """Measure synthetic volumes: fidelity and diversity, pairs, factors, privacy, each beside its anchors.

    Args:
        real: folder of real volumes that the generator has not seen, or arrays (x, y, z).
        synthetic: folder of the volumes to judge, or arrays.
        train: the generator's training volumes; needed for privacy. They also give the real-against-real floor, for
            which half of `real` is used otherwise.
        masks: folder of masks named as the real volumes: paired metrics are measured inside.
        labels: folders of label maps of the real and of the synthetic volumes: Dice, HD95 and lesion sizes.
        out: folder for `report.json`, `report.md`, `cases.csv`, `neighbours.csv`, the pictures, and `cache/`, from which
            a killed run goes on.
        name: of the method; the synthetic folder's name by default.
        options: see :class:`EvaluationOptions`.
        on_stage: called with what begins and its number of steps; what it returns is called after each step.

    Raises:
        FileNotFoundError: a folder or an extractor's weights are missing, or a folder is empty.
        ValueError: sets that cannot be measured or compared: too few volumes, different grids or units, broken files,
            masks that do not match, an option without what it needs.
    """
    options = options or EvaluationOptions()
    started = time.perf_counter()
    stage = on_stage or no_stage
    out = Path(out) if out is not None else None
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"The report's folder {out} is a file; give a folder.")
    cache = out / "cache" if out is not None else None
    sets = open_sets(real, synthetic, train, masks, labels, options, cache)
    extractors = load_extractors(options, need_3d=train is not None)
    perceptual = load_perceptual(options.lpips_weights, device=options.device)
    prepare_sets(sets, stage)
    protocol = make_protocol(sets, extractors, perceptual, options)
    report = Report(
        name=name or (Path(synthetic).name if isinstance(synthetic, str | Path) else "arrays"),
        protocol=protocol.to_dict(),
        synthetic={"folder": str(sets.synthetic.folder), "sha256": sets.synthetic.content_digest},
        real={"folder": str(sets.real.folder)},
    )
    run = _Run(
        sets=sets,
        extractors=extractors,
        perceptual=perceptual,
        options=options,
        protocol=protocol,
        cache=cache,
        stage=stage,
        report=report,
    )
    report.warnings += clipping_warnings(sets.synthetic, sets.real)
    if options.subgroup is not None:
        report.warnings += subgroups.one_sided(options.subgroup, sets.real, sets.synthetic)
    run.extract_all()
    run.unpaired()
    run.diversity()
    run.factors()
    run.pairs()
    run.privacy()
    report.seconds = round(time.perf_counter() - started, 1)
    if out is not None:
        report.save(out)
        if "paired" in report.results:
            write_csv(report.results["paired"]["cases"], out / "cases.csv")
        if "privacy" in report.results:
            privacy.write_neighbours(report.results["privacy"]["neighbours"], out / "neighbours.csv")
        run.draw(out)
        report.save(out)
    return report


@dataclass(kw_only=True)
class _Run:
    """An evaluation under way: fills the report, section by section."""

    sets: EvaluationSets
    extractors: Sequence[FeatureExtractor]
    perceptual: PerceptualBackbone
    options: EvaluationOptions
    protocol: Protocol
    cache: Path | None
    stage: Stage
    report: Report
    features: dict[tuple[str, str | None, str], FeatureSet] = field(default_factory=dict)

    def extract_all(self) -> None:
        """Features of every set and of the anchors, for each extractor and plane."""
        shared: dict[str, Sequence[torch.Tensor]] = {"real": self.sets.real, "synthetic": self.sets.synthetic}
        shared |= {f"anchor: {name}": volumes for name, volumes in self._anchors().items()}
        for extractor in self.extractors:
            for plane in self._planes(extractor):
                groups = dict(shared)
                if extractor is self._privacy_extractor() and self.sets.train is not None:
                    groups["training"] = self.sets.train
                where = extractor.name if plane is None else f"{extractor.name}, {plane}"
                advance = self.stage(f"Features ({where})", sum(map(len, groups.values())))
                for name, volumes in groups.items():
                    self.features[extractor.name, plane, name] = extract_features(
                        extractor,
                        volumes,
                        plane=plane,
                        slices_per_plane=self.options.slices_per_plane,
                        cache_dir=self.cache,
                        on_volume=advance,
                    )

    def unpaired(self) -> None:
        """Fidelity and diversity in each feature space, of the whole sets and of each subgroup."""
        advance = self.stage("Statistics", sum(len(self._planes(extractor)) for extractor in self.extractors))
        results, by_group = [], {value: [] for value in self.sets.subgroups}  # type: ignore[var-annotated]
        for extractor in self.extractors:
            for plane in self._planes(extractor):
                results.append(self._unpaired(extractor, plane))
                for value, places in self.sets.subgroups.items():
                    by_group[value].append(self._unpaired_subgroup(extractor, plane, places))
                advance()
        self.report.results["unpaired"] = results
        self.report.warnings += [
            f"{unpaired.title(result)}: {warning}" for result in results for warning in result["warnings"]
        ]
        for value, found in by_group.items():
            self.report.subgroups.setdefault(value, {})["unpaired"] = found

    def diversity(self) -> None:
        """Similarity within the sets."""
        settings = {key: value for key, value in self.protocol.ms_ssim.items() if key != "pairs"}
        self.report.results["diversity"] = diversity.measure_diversity(
            self.sets.real,
            self.sets.synthetic,
            self._anchor_reference(),
            self._other_real(),
            max_pairs=self.options.pairs,
            ms_ssim_settings=settings,
            perceptual=self.perceptual,
            seed=self.options.seed,
            on_pair=self.stage("Diversity", self._num_pairs()),
        )

    def factors(self) -> None:
        """Distributions of known factors."""
        if "factors" not in self.protocol.sections:
            return
        self.report.results["factors"] = factors.measure_factors(
            self.options.factors,
            self.sets.real,
            self.sets.synthetic,
            labels=self.sets.labels,
            seed=self.options.seed,
            on_volume=self.stage("Factors", len(self.sets.real) + len(self.sets.synthetic)),
        )

    def pairs(self) -> None:
        """Volumes of the same name."""
        if not self.options.paired:
            return
        found = pairs.measure_pairs(
            self.sets.real,
            self.sets.synthetic,
            masks=self.sets.masks,
            labels=self.sets.labels,
            perceptual=self.perceptual,
            cache_dir=self.cache,
            seed=self.options.seed,
            on_volume=self.stage("Pairs", len(self.sets.real)),
        )
        self.report.results["paired"] = found
        for value, (places, _) in self.sets.subgroups.items():
            chosen = {**found, "cases": [found["cases"][place] for place in places]}
            chosen["summary"] = pairs.summarize(chosen["cases"], seed=self.options.seed)
            self.report.subgroups.setdefault(value, {})["paired"] = chosen

    def privacy(self) -> None:
        """How near the synthetic volumes come to the training volumes, beside how near held-out ones do."""
        extractor = self._privacy_extractor()
        if self.sets.train is None or extractor is None:
            return
        name = extractor.name
        found = {which: self.features[name, None, which].values for which in ("real", "synthetic", "training")}
        self.report.results["privacy"] = privacy.measure_privacy(
            self.sets.synthetic,
            self.sets.real,
            self.sets.train,
            features=(found["synthetic"], found["real"], found["training"]),
            extractor=name,
            ms_ssim_settings={key: value for key, value in self.protocol.ms_ssim.items() if key != "pairs"},
            with_reidentification=self.options.reidentify,
            cache_dir=self.cache,
            seed=self.options.seed,
            device=self.options.device,
            stage=self.stage,
        )
        self.report.warnings += self.report.results["privacy"]["warnings"]

    def draw(self, out: Path) -> None:
        """The pictures, beside the report."""
        real, synthetic = self.sets.real, self.sets.synthetic
        captions = self.report.pictures
        pictures.save_montage(out / "montage.png", {"real": real, "synthetic": synthetic}, real.spacing_mm)
        captions["montage.png"] = "Real and synthetic volumes, three planes each, evenly spaced through the sets"
        first = self.extractors[0]
        plane = self._planes(first)[0]
        found_real, found_synthetic = (self.features[first.name, plane, which] for which in ("real", "synthetic"))
        pictures.save_embedding(out / "embedding.png", found_real, found_synthetic, first.name)
        captions["embedding.png"] = "Both sets on the principal components of the real features"
        pictures.save_profiles(out / "profiles.png", real, synthetic, _intensity_axis(real.processor))
        captions["profiles.png"] = "Histogram of intensities and power spectrum: mean and 5 to 95 % band"
        if (found := self.report.results.get("privacy")) is not None and self.sets.train is not None:
            closest = [(row["place"], row["train_place"], row["text"]) for row in found["closest"]]
            pictures.save_neighbours(
                out / "neighbours.png", synthetic, self.sets.train, closest, "nearest training", real.spacing_mm
            )
            captions["neighbours.png"] = "The synthetic volumes nearest to a training volume, beside it"

    def _privacy_extractor(self) -> FeatureExtractor | None:
        """The first one that reads volumes."""
        return next((extractor for extractor in self.extractors if extractor.spatial_dims == 3), None)

    def _planes(self, extractor: FeatureExtractor) -> list[str | None]:
        return [None] if extractor.spatial_dims == 3 else list(PLANES)

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        return anchors.random_halves(len(self.sets.real), self.options.seed)

    def _num_pairs(self) -> int:
        """Of the three sets whose diversity is measured."""
        sizes = [len(self.sets.synthetic), len(self.sets.real), len(self.sets.real)]
        return sum(min(self.options.pairs, size * (size - 1) // 2) for size in sizes)

    def _anchor_reference(self) -> VolumeSet:
        """Reals that the anchors are compared with: all of them, or the half that the anchors are not made of."""
        return self.sets.real if self.sets.train is not None else self.sets.real.subset(self._halves()[0].tolist())

    def _other_real(self) -> VolumeSet:
        """Reals that the anchors are made of: training volumes, or half of the real ones; as many as synthetic ones."""
        if self.sets.train is not None:
            drawn = np.random.default_rng(self.options.seed).permutation(len(self.sets.train))
            return self.sets.train.subset(np.sort(drawn[: len(self.sets.synthetic)]).tolist())
        return self.sets.real.subset(self._halves()[1][: len(self.sets.synthetic)].tolist())

    def _anchors(self) -> dict[str, Sequence[torch.Tensor]]:
        return anchors.anchor_sets(self._other_real())

    def _unpaired(self, extractor: FeatureExtractor, plane: str | None) -> dict[str, Any]:
        found = {which: self.features[extractor.name, plane, which] for which in ("real", "synthetic")}
        anchor_features = {name: self.features[extractor.name, plane, f"anchor: {name}"] for name in anchors.ANCHORS}
        has_train = self.sets.train is not None
        return unpaired.measure_unpaired(
            extractor.settings(),
            plane,
            found["real"],
            found["synthetic"],
            found["real"] if has_train else found["real"].of_volumes(self._halves()[0]),
            anchor_features,
            matched=None if has_train else found["synthetic"].of_volumes(range(len(self._other_real()))),
            seed=self.options.seed,
        )

    def _unpaired_subgroup(
        self, extractor: FeatureExtractor, plane: str | None, places: tuple[list[int], list[int]]
    ) -> dict[str, Any]:
        real, synthetic = (
            self.features[extractor.name, plane, which].of_volumes(chosen)
            for which, chosen in zip(("real", "synthetic"), places, strict=True)
        )
        return unpaired.measure_unpaired(extractor.settings(), plane, real, synthetic, real, {}, seed=self.options.seed)


def _intensity_axis(rules: VolumeProcessor) -> tuple[float, float, str]:
    """What 0 and 1 of a prepared volume stand for."""
    if rules.intensity == "window":
        return float(rules.low or 0), float(rules.high or 1), rules.unit or "a.u."
    return 0.0, 1.0, "of each volume's percentiles"
