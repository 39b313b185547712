"""Findings and tables of `bench_patch_volume_ablations.py`: values, paired differences, and whether the paper is met."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ablation_measures import EXTRACTOR, FACTORS, paired_statistic
from ablation_runs import GENERATORS, PARTS, RECONSTRUCTIONS, Grid
from record import markdown_table

from voxdiff.metrics.factor_distances import factor_distances
from voxdiff.metrics.fidelity import frechet_distance, kernel_inception_distance
from voxdiff.metrics.intervals import jackknife_interval
from voxdiff.metrics.paired import compare_paired

Measured = Mapping[str, Mapping[int, dict[str, Any]]]
Reals = Mapping[Grid, dict[str, Any]]

GRIDS = {name: grid for name, (_, grid) in (RECONSTRUCTIONS | GENERATORS).items()}

STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "fid": frechet_distance,
    "kid": kernel_inception_distance,
}
DIGITS = {
    "psnr": 2,
    "ssim": 4,
    "gradient": 3,
    "border": 3,
    "original_border": 3,
    "error_border": 3,
    "seam": 3,
    "fid": 2,
    "kid": 4,
    "loss": 4,
}
MEAN_VOLUME = "the mean volume"
_BLOCKS = 10


@dataclass(frozen=True)
class Comparison:
    """Two rows of a part.

    Attributes:
        part: Letter.
        first: Row.
        second: Row.
        metric: A key of :data:`DIGITS`.
        expected: Sign of first minus second in the paper; 0 where it says nothing.
        paper: Its numbers.
    """

    part: str
    first: str
    second: str
    metric: str
    expected: int = 0
    paper: str = "-"


_TITLES = {
    "a": "Joint decoder against patch decoder",
    "b": "Losses of the autoencoder",
    "c": "Intra-patch flow of BiFlowNet",
    "d": "Latents encoded patch by patch or whole",
    "e": "Several grids against one",
}
_COMPARISONS = (
    Comparison("a", "joint decoder", "patch decoder", "psnr", 1, "35.79, 34.23"),
    Comparison("a", "joint decoder", "patch decoder", "ssim", 1, ".9314, .9273"),
    Comparison("a", "joint decoder", "patch decoder, longer", "psnr", 1, "35.79, 34.23"),
    Comparison("a", "joint decoder", "patch decoder, longer", "ssim", 1, ".9314, .9273"),
    Comparison("a", "joint decoder", "patch decoder, longer", "seam", -1, "seams gone"),
    Comparison("a", "joint decoder", "patch decoder, longer", "error_border", -1, "seams gone"),
    Comparison("a", "patch decoder, joint use", "patch decoder", "psnr"),
    Comparison("b", "VQ + adversarial", "VQ", "psnr", 1, "33.27, 32.90"),
    Comparison("b", "VQ + adversarial", "VQ", "ssim"),
    Comparison("b", "VQ + adversarial", "VQ", "gradient"),
    Comparison("b", "VQ + adversarial + tri-plane", "VQ + adversarial", "psnr", 1, "34.28, 33.27"),
    Comparison("b", "VQ + adversarial + tri-plane", "VQ + adversarial", "ssim"),
    Comparison("b", "VQ + adversarial + tri-plane", "VQ + adversarial", "gradient"),
    *(
        Comparison("c", first, second, metric, 1 if metric == "fid" else 0, paper if metric == "fid" else "-")
        for first, second, paper in (
            ("no intra-patch flow", "BiFlowNet", ".0117, .0055"),
            ("U-Net blocks for the DiT", "BiFlowNet", ".0087, .0055"),
            ("no intra-patch flow", "U-Net blocks for the DiT", ".0117, .0087"),
        )
        for metric in ("fid", "kid", "loss")
    ),
    Comparison("d", "encoded whole", "joint decoder", "psnr"),
    Comparison("d", "latents encoded whole", "BiFlowNet", "fid", 1, ".0073, .0055"),
    Comparison("d", "latents encoded whole", "BiFlowNet", "kid"),
    *(
        Comparison("e", f"BiFlowNet{asked}", f"two grids{asked}", metric)
        for asked in ("", ", asked for the other grid")
        for metric in ("fid", "kid", "loss")
    ),
)


def findings(measured: Measured, reals: Reals) -> dict[str, Any]:
    """Values of the rows and the comparisons of each part, of what was measured.

    Args:
        measured: Row -> seed -> measurement.
        reals: Grid -> what was measured of real volumes.
    """
    found: dict[str, Any] = {}
    for part, names in PARTS.items():
        rows = [row for row in names if row in measured]
        grids = dict.fromkeys(GRIDS[row] for row in rows if row in GRIDS)
        values = {row: {seed: row_values(row, record, reals) for seed, record in measured[row].items()} for row in rows}
        compared = [compare(comparison, measured, reals) for comparison in _COMPARISONS if comparison.part == part]
        if any(compared):
            found[part] = {
                "values": values,
                "anchors": {
                    f"{name}, {'x'.join(map(str, grid))}": set_values(record, reals[grid])
                    for grid in grids
                    for name, record in {"real against real": reals[grid]["train"], **anchors_of(reals[grid])}.items()
                },
                "comparisons": list(filter(None, compared)),
            }
    return found


def anchors_of(real: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: record for name, record in real["anchors"].items() if isinstance(record, dict) and "features" in record
    }


def row_values(row: str, record: dict[str, Any], reals: Reals) -> dict[str, float]:
    """The means of an autoencoder's cases, or the distances of a generated set from the real test subjects."""
    if row in GRIDS:
        return set_values(record, reals[GRIDS[row]])
    cases = record["cases"]
    return {name: float(np.mean([case[name] for case in cases])) for name in cases[0] if name != "case"}


def set_values(record: dict[str, Any], real: dict[str, Any]) -> dict[str, float]:
    reference, own = np.array(real["test"]["features"]), np.array(record["features"])
    values = {name: statistic(reference, own) for name, statistic in STATISTICS.items()}
    if "losses" in record:
        values["loss"] = float(np.mean(record["losses"]))
    if "factors" in record:
        distances = factor_distances(real["test"]["factors"], record["factors"])
        found = {name: distances[name].wasserstein_in_sd.estimate for name in FACTORS}
        values |= {name: estimate for name, estimate in found.items() if estimate is not None}
    if "parameters_m" in record:
        values["parameters_m"] = record["parameters_m"]
    return values


def compare(comparison: Comparison, measured: Measured, reals: Reals) -> dict[str, Any] | None:
    """First minus second with a 95 % interval for each seed that both have, and the verdict; None without any."""
    first, second = (measured.get(row, {}) for row in (comparison.first, comparison.second))
    real = reals.get(GRIDS.get(comparison.first, (0, 0, 0)))
    differences = {
        seed: difference(comparison.metric, first[seed], second[seed], real)
        for seed in sorted(first.keys() & second.keys())
    }
    if not differences:
        return None
    found = verdict(comparison.expected, list(differences.values()))
    if real is not None and all(
        beyond_the_mean_volume(comparison.metric, [first[seed], second[seed]], real) for seed in differences
    ):
        found = "undecided: both are farther than the mean volume"
    described = {name: getattr(comparison, name) for name in ("first", "second", "metric", "expected", "paper")}
    return {
        **described,
        "differences": differences,
        "verdict": found,
    }


def beyond_the_mean_volume(metric: str, records: Sequence[dict[str, Any]], real: dict[str, Any]) -> bool:
    """Whether both sets are farther from the real one than a set without any variety or detail."""
    if metric not in STATISTICS:
        return False
    reach = set_values(real["anchors"][MEAN_VOLUME], real)[metric]
    return all(set_values(record, real)[metric] > reach for record in records)


def difference(metric: str, first: dict, second: dict, real: dict[str, Any] | None) -> dict[str, float]:
    """Paired over volumes; for FID and KID by a jackknife over real subjects and initial noises."""
    if "cases" in first or metric == "loss":
        cases = [
            [
                {"case": f"{place:04d}", metric: value[metric] if isinstance(value, dict) else value}
                for place, value in enumerate(record["cases" if "cases" in record else "losses"])
            ]
            for record in (first, second)
        ]
        found = compare_paired(*cases)[metric]
        return {"mean": found["mean"], "low": found["low"], "high": found["high"]}
    assert real is not None
    pairs = np.concatenate([np.array(record["features"]) for record in (first, second)], axis=1)
    interval = jackknife_interval(
        partial(paired_statistic, STATISTICS[metric]), np.array(real["test"]["features"]), pairs, num_blocks=_BLOCKS
    )
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def verdict(expected: int, differences: Sequence[Mapping[str, float]]) -> str:
    """What all seeds agree on beyond their intervals."""
    signs = {1 if found["low"] > 0 else -1 if found["high"] < 0 else 0 for found in differences}
    sign = signs.pop() if len(signs) == 1 else 0
    alone = " (one seed)" if len(differences) == 1 else ""
    if not sign:
        return f"not beyond the noise{alone}"
    if not expected:
        return f"{'higher' if sign > 0 else 'lower'}; the paper gives no direction{alone}"
    return f"{'as in the paper' if sign == expected else 'the opposite of the paper'}{alone}"


def document(result: Mapping[str, Any]) -> str:
    """All tables, below what they were measured on."""
    machine, protocol = result["environment"], result["protocol"]
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in protocol.items())
    lines = [
        "# The ablations of 3D MedDiffusion, small, on the simulated MR cohort",
        f"`{machine['command']}` on {machine['processor']}, torch {machine['versions']['torch']}: {settings}. "
        f"{result['cpu_minutes']} CPU minutes in all.",
        "What is measured and how: the docstring of `benchmarks/bench_patch_volume_ablations.py`. A value is the mean of "
        "its seeds, which stand behind it. A difference has a 95 % interval over volumes (PSNR, SSIM, loss: paired "
        f"bootstrap) or over real subjects and initial noises (FID, KID of {EXTRACTOR}: paired jackknife); a verdict "
        "other than noise needs intervals without 0 on one side in every seed. They hold no uncertainty of training "
        "but what the seeds show.",
    ]
    for part, found in result["parts"].items():
        lines += [f"## {part}. {_TITLES[part]}", *value_tables(found), comparison_table(found["comparisons"])]
    return "\n\n".join(line for line in lines if line) + "\n"


_HEADINGS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "border": "border / elsewhere",
    "original_border": "of the original",
    "error_border": "of the error",
    "seam": "seam",
    "gradient": "gradient energy / original's",
    "fid": "FID",
    "kid": "KID",
    "loss": "held-out loss",
    "brain_volume_ml": "W1 brain volume, SD",
    "ventricle_volume_ml": "W1 ventricles, SD",
    "sharpness": "W1 sharpness, SD",
    "parameters_m": "M parameters",
}


def value_tables(found: Mapping[str, Any]) -> list[str]:
    """A table of the autoencoders and one of the generators, with anchors."""
    anchors = {name: {0: values} for name, values in found["anchors"].items()}
    rows: dict[str, Mapping[Any, Mapping[str, float]]] = {**found["values"], **anchors}
    tables = []
    for is_reconstruction in (True, False):
        chosen = {row: seeds for row, seeds in rows.items() if ("psnr" in first_of(seeds)) == is_reconstruction}
        known = [name for name in _HEADINGS if any(name in first_of(seeds) for seeds in chosen.values())]
        cells = [[row, *(cell(name, seeds) for name in known)] for row, seeds in chosen.items()]
        if cells:
            tables.append(markdown_table(["", *(_HEADINGS[name] for name in known)], cells))
    return tables


def first_of(seeds: Mapping[Any, Mapping[str, float]]) -> Mapping[str, float]:
    return next(iter(seeds.values()))


def cell(name: str, seeds: Mapping[Any, Mapping[str, float]]) -> str:
    values = [found[name] for found in seeds.values() if name in found]
    if not values:
        return "-"
    digits = DIGITS.get(name, 2)
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1 or name == "parameters_m":
        return mean
    return f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for compared in comparisons:
        digits = DIGITS[compared["metric"]]
        differences = "; ".join(
            f"{found['mean']:+.{digits}f} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
            for found in compared["differences"].values()
        )
        what = f"{compared['first']} - {compared['second']}"
        rows.append([what, _HEADINGS[compared["metric"]], compared["paper"], differences, compared["verdict"]])
    return markdown_table(["difference", "of", "paper", "each seed (95 %)", "verdict"], rows) if rows else ""
