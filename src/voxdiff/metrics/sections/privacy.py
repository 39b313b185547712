"""Privacy: how near synthetic volumes come to training volumes, beside how near held-out real volumes do."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from voxdiff.metrics.copies import copy_distances
from voxdiff.metrics.manifold import rarity_scores
from voxdiff.metrics.markdown import number, table
from voxdiff.metrics.nearest import Matches, nearest_by_ms_ssim
from voxdiff.metrics.privacy import (
    MemorisationTest,
    average_minimum_cosine_distance,
    memorisation_test,
    nearest_neighbours,
)
from voxdiff.metrics.reidentification import Reidentification, reidentify, train_reidentifier
from voxdiff.metrics.stages import Stage, no_stage
from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.volumes import atomic_path

CLOSEST = 6
"""Synthetic volumes that are listed and drawn beside their nearest training volume."""

_COPY_RATIO = 0.5  # planted copies lie below, held-out volumes near 1
_COPIES_VERSION = 1  # of the cached distances


def measure_privacy(
    synthetic: VolumeSet,
    heldout: VolumeSet,
    train: VolumeSet,
    *,
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
    extractor: str,
    ms_ssim_settings: dict[str, Any],
    with_reidentification: bool = False,
    cache_dir: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    stage: Stage = no_stage,
) -> dict[str, Any]:
    """Copies, memorisation, nearest neighbours, AMD, rarity and, on request, re-identification.

    Args:
        synthetic: the volumes to judge.
        heldout: reals that the generator has not seen: what everything is calibrated on.
        train: the generator's training volumes.
        features: of the three sets, (number, features) each.
        extractor: that gave the features.
        ms_ssim_settings: arguments of :func:`voxdiff.metrics.similarity.ms_ssim`.
        with_reidentification: train a network that recognises subjects.
        cache_dir: where distances are kept.
        seed: of the re-identification network.
        device: where distances are computed.
        stage: is told what begins.
    """
    advance = stage("Copies", 2)
    found, found_heldout = (_copies(volumes, train, cache_dir, device, advance) for volumes in (synthetic, heldout))
    test = memorisation_test(found["ratios"].numpy(), found_heldout["ratios"].numpy())
    advance = stage("Nearest by MS-SSIM", 2)
    similar, similar_heldout = (
        _most_similar(volumes, train, ms_ssim_settings, cache_dir, device, advance) for volumes in (synthetic, heldout)
    )
    warnings = [f"Memorisation: {warning}" for warning in test.warnings]
    can_judge = float(found_heldout["ratios"].median()) > _COPY_RATIO
    if not can_judge:
        warnings.append("Copies: the held-out volumes lie as near to training volumes as copies do; hold others out.")
    neighbours = _neighbours(found, similar, features, synthetic, train)
    data: dict[str, Any] = {
        "memorisation": _plain_test(test),
        "copies": {
            "count": len(test.copies) if can_judge else None,
            "names": [synthetic.names[place] for place in test.copies],
            "expected_false_alarms": test.expected_false_alarms,
        },
        "closest": [{**row, "text": f"ratio {row['ratio']:.2f}"} for row in neighbours[:CLOSEST]],
        "neighbours": neighbours,
        "nearest_ms_ssim": {
            "synthetic": _spread(similar.similarity.numpy()),
            "held out": _spread(similar_heldout.similarity.numpy()),
        },
        "features": {"extractor": extractor, **_in_features(*features)},
    }
    if with_reidentification:
        advance = stage("Re-identification", 1)
        result = reidentify(train_reidentifier(train, seed=seed, device=device), synthetic, train, heldout, seed=seed)
        data["reidentification"] = _plain_reidentification(result)
        warnings += [f"Re-identification: {warning}" for warning in result.warnings]
        advance()
    return {**data, "warnings": warnings}


def _copies(
    volumes: VolumeSet, train: VolumeSet, cache_dir: Path | None, device: str, advance: Any
) -> dict[str, torch.Tensor]:
    """Copy distances, their ratios and the nearest training volumes, kept in the cache."""
    digests = [[found.digest(place) for place in range(len(found))] for found in (volumes, train)]
    key = hashlib.sha256(json.dumps([_COPIES_VERSION, digests]).encode()).hexdigest()[:24]
    path = cache_dir / f"copies-{key}.safetensors" if cache_dir is not None else None
    if path is not None and path.is_file():
        advance()
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"The kept distances {path} cannot be read ({error}); delete the file.") from error
    matches = copy_distances(volumes, train, device=device)
    found = {"distances": matches.distances, "ratios": matches.ratios, "nearest": matches.nearest}
    if path is not None:
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)
    advance()
    return found


def _most_similar(
    volumes: VolumeSet,
    train: VolumeSet,
    settings: dict[str, Any],
    cache_dir: Path | None,
    device: str,
    advance: Any,
) -> Matches:
    """The training volumes nearest to each volume."""
    matches = nearest_by_ms_ssim(volumes, train, **settings, device=device, cache_dir=cache_dir)
    advance()
    return matches


def _neighbours(
    found: dict[str, torch.Tensor],
    similar: Matches,
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
    synthetic: VolumeSet,
    train: VolumeSet,
) -> list[dict[str, Any]]:
    """The nearest training volume of every synthetic one by each distance, suspected copies first."""
    feature_distances, feature_nearest = nearest_neighbours(features[0], features[2])
    rows = []
    for place in found["ratios"].argsort(stable=True).tolist():
        nearest = int(found["nearest"][place])
        rows.append(
            {
                "place": place,
                "train_place": nearest,
                "synthetic": synthetic.names[place],
                "training": train.names[nearest],
                "distance": float(found["distances"][place]),
                "ratio": float(found["ratios"][place]),
                "nearest_by_ms_ssim": train.names[int(similar.index[place])],
                "ms_ssim": float(similar.similarity[place]),
                "nearest_in_features": train.names[int(feature_nearest[place])],
                "feature_distance": float(feature_distances[place]),
            }
        )
    return rows


def write_neighbours(rows: list[dict[str, Any]], path: Path) -> None:
    """One row a synthetic volume: its nearest training volume by copy distance, MS-SSIM and features."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _in_features(synthetic: np.ndarray, heldout: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    distances, heldout_distances = (nearest_neighbours(found, train)[0] for found in (synthetic, heldout))
    test = memorisation_test(distances, heldout_distances)
    rarity = rarity_scores(heldout, synthetic)
    inside = rarity.values[np.isfinite(rarity.values)]
    return {
        "nearest_distance": {"synthetic": _spread(distances), "held out": _spread(heldout_distances)},
        "memorisation": _plain_test(test),
        "amd": {
            "synthetic": average_minimum_cosine_distance(synthetic, train),
            "held out": average_minimum_cosine_distance(heldout, train),
        },
        "rarity": {"mean": float(inside.mean()) if len(inside) else None, "undefined_share": rarity.undefined_share},
    }


def _plain_test(test: MemorisationTest) -> dict[str, Any]:
    return {**vars(test), "copies": list(test.copies), "heldout_below": list(test.heldout_below), "warnings": None}


def _plain_reidentification(result: Reidentification) -> dict[str, Any]:
    return {
        "share": result.share,
        "low": result.interval[0],
        "high": result.interval[1],
        "recognised": list(result.recognised),
        "threshold": result.threshold,
        "false_alarm_rate": result.false_alarm_rate,
        "verification_auc": result.verification_auc,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def markdown(data: dict[str, Any]) -> str:
    """What was found, each number beside that of held-out volumes."""
    test, space = data["memorisation"], data["features"]
    similar, distances = data["nearest_ms_ssim"], space["nearest_distance"]
    rows = [
        ["nearest training volume, MS-SSIM", *(_mean(similar[name]) for name in ("synthetic", "held out"))],
        [
            f"the same in {space['extractor']}, distance",
            *(_mean(distances[name]) for name in ("synthetic", "held out")),
        ],
        [f"AMD ({space['extractor']})", *(number(space["amd"][name]) for name in ("synthetic", "held out"))],
    ]
    closest = [
        [
            *(row["synthetic"], row["training"], number(row["distance"]), number(row["ratio"])),
            *(row["nearest_by_ms_ssim"], number(row["ms_ssim"])),
        ]
        for row in data["closest"]
    ]
    rarity = space["rarity"]
    parts = [
        "## Privacy\n",
        f"{_copies_sentence(data, test)} Nearer to the training set than held-out volumes are: AUC {number(test['auc'])} "
        f"(0.5 for equals), p = {number(test['p_value'])}; in {space['extractor']} features AUC "
        f"{number(space['memorisation']['auc'])}, p = {number(space['memorisation']['p_value'])}.\n",
        table(["", "synthetic", "held out"], rows),
        f"Rarity score (smallest real ball of 3 neighbours around a volume): mean {number(rarity['mean'])}, undefined "
        f"(outside of all balls) for {number(rarity['undefined_share'])} of the volumes.\n",
    ]
    if (found := data.get("reidentification")) is not None:
        parts.append(
            f"Re-identification: {number(found['share'])} ({number(found['low'])} to {number(found['high'])}) of the "
            f"synthetic volumes are taken for a training subject at {number(found['false_alarm_rate'])} false alarms on "
            f"held-out ones; the network tells held-out subjects apart with AUC {number(found['verification_auc'])}.\n"
        )
    parts.append(
        table(["nearest pairs", "training volume", "copy distance", "ratio", "nearest by MS-SSIM", "MS-SSIM"], closest)
        + "\nEvery synthetic volume with its nearest by copy distance, MS-SSIM and features is in `neighbours.csv`.\n"
    )
    return "\n".join(parts)


def _copies_sentence(data: dict[str, Any], test: dict[str, Any]) -> str:
    if data["copies"]["count"] is None:
        return "**Copies cannot be judged**: the held-out volumes lie as near to training volumes as copies do."
    return (
        f"**{data['copies']['count']} suspected copies** of training volumes among {test['num_synthetic']} "
        f"({number(data['copies']['expected_false_alarms'])} expected at a nominal {100 * test['false_alarm_rate']:g} %; "
        f"{len(test['heldout_below'])} of the {test['num_heldout']} held-out volumes lie below the same threshold "
        f"{number(test['threshold'])})."
    )


def _mean(spread: dict[str, float]) -> str:
    return f"{number(spread['mean'])} ± {number(spread['sd'])}"
