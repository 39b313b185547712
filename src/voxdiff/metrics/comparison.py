"""Several methods in one table, where their reports were made by the same protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxdiff.metrics.factor_distances import relative_to_spread
from voxdiff.metrics.markdown import estimate, interval, number, table
from voxdiff.metrics.paired import compare_paired
from voxdiff.metrics.protocol import protocol_differences
from voxdiff.metrics.report import Report
from voxdiff.metrics.sections import pairs, unpaired


def compare_reports(reports: Sequence[Report | str | Path]) -> str:
    """Markdown tables of several methods, a row a method, beside the anchors that they share.

    Args:
        reports: at least two, or the paths of their `report.json`.

    Raises:
        FileNotFoundError: a report is missing.
        ValueError: fewer than two reports, or reports of different protocols.
    """
    loaded = [report if isinstance(report, Report) else Report.load(report) for report in reports]
    if len(loaded) < 2:
        raise ValueError(f"{len(loaded)} report was given; give at least two to compare.")
    first = loaded[0]
    for other in loaded[1:]:
        if other.protocol_hash != first.protocol_hash:
            differences = protocol_differences(first.protocol, other.protocol)
            raise ValueError(
                f"The reports of {first.name} and {other.name} were made by different protocols "
                f"({first.protocol_hash} and {other.protocol_hash}: {'; '.join(differences[:3])}); evaluate both alike."
            )
    names = _distinct_names(loaded)
    lines = [
        f"# Comparison of {', '.join(names)}\n",
        f"Protocol `{first.protocol_hash}`: {first.protocol['num_synthetic']} synthetic against "
        f"{first.protocol['num_real']} real volumes each. Intervals are 95 %.\n",
        *_version_notes(loaded, names),
    ]
    for place in range(len(first.results.get("unpaired", []))):
        lines.append(_unpaired_table([report.results["unpaired"][place] for report in loaded], names))
    lines.append(_diversity_table([report.results["diversity"] for report in loaded], names))
    if "factors" in first.results:
        lines.append(_factor_table([report.results["factors"]["factors"] for report in loaded], names))
    if "paired" in first.results:
        lines.append(_paired_table([report.results["paired"] for report in loaded], names))
        lines += [
            _difference_table(loaded[0].results["paired"], other.results["paired"], (names[0], name))
            for other, name in zip(loaded[1:], names[1:], strict=True)
        ]
    if "privacy" in first.results:
        lines.append(_privacy_table([report.results["privacy"] for report in loaded], names))
    return "\n".join(lines)


def _distinct_names(reports: Sequence[Report]) -> list[str]:
    """The methods' names, numbered where two are alike."""
    names = [report.name for report in reports]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]


def _version_notes(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    first = reports[0].versions
    return [
        f"Note: {name} was measured with other package versions than {names[0]} "
        f"({', '.join(sorted(key for key in {*first, *report.versions} if first.get(key) != report.versions.get(key)))}).\n"
        for report, name in zip(reports[1:], names[1:], strict=True)
        if report.versions != first
    ]


def _unpaired_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    metrics = [metric for metric in unpaired.METRICS if metric in found[0]["rows"][unpaired.SYNTHETIC]]
    rows = [
        [name, *(estimate(data["rows"][unpaired.SYNTHETIC][metric]) for metric in metrics)]
        for name, data in zip(names, found, strict=True)
    ]
    rows += [
        [f"*{anchor}*", *(estimate(values.get(metric)) for metric in metrics)]
        for anchor, values in found[0]["rows"].items()
        if anchor not in (unpaired.SYNTHETIC, unpaired.SYNTHETIC_HALF)
    ]
    title = unpaired.title(found[0])
    return f"## {title}\n\n{table(['method', *(unpaired.METRICS[metric] for metric in metrics)], rows)}"


def _diversity_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    measures = [key for key in found[0] if isinstance(found[0][key], dict) and "synthetic" in found[0][key]]
    rows = [
        [name, *(estimate(data[measure]["synthetic"]) for measure in measures)]
        for name, data in zip(names, found, strict=True)
    ]
    rows += [
        [f"*{anchor}*", *(estimate(found[0][measure].get(anchor)) for measure in measures)]
        for anchor in found[0]["ms_ssim"]
        if anchor != "synthetic"
    ]
    return f"## Diversity\n\n{table(['method', *measures], rows)}"


def _factor_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    factors = list(found[0])
    rows = [
        [name, *(interval(data[factor]["wasserstein_in_sd"]) for factor in factors)]
        for name, data in zip(names, found, strict=True)
    ]
    floors = [
        relative_to_spread(data["floor"], data["real_sd"], data["real_mean"])
        for data in (found[0][factor] for factor in factors)
    ]
    rows.append(["*real halves*", *map(number, floors)])
    header = ["Wasserstein distance in sd", *factors]
    return f"## Factors\n\n{table(header, rows)}"


def _paired_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    metrics = [metric for metric in found[0]["summary"] if metric != "ms_ssim_scales"]
    rows = [
        [name, *(f"{number(s['mean'])} ± {number(s['sd'])}" for s in (data["summary"][metric] for metric in metrics))]
        for name, data in zip(names, found, strict=True)
    ]
    return f"## Pairs\n\n{table(['method', *(pairs.NAMES.get(metric, metric) for metric in metrics)], rows)}"


def _difference_table(first: dict[str, Any], other: dict[str, Any], names: tuple[str, str]) -> str:
    rows = [
        [
            pairs.NAMES.get(metric, metric),
            f"{number(found['mean'])} ({number(found['low'])} to {number(found['high'])})",
            number(found["p_value"]),
        ]
        for metric, found in compare_paired(first["cases"], other["cases"]).items()
        if metric != "ms_ssim_scales"
    ]
    header = ["metric", f"{names[0]} minus {names[1]}, mean over cases (95 %)", "p (Wilcoxon)"]
    return f"### {names[0]} against {names[1]}\n\n{table(header, rows)}"


def _privacy_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    rows = [
        [
            name,
            str(data["copies"]["count"]),
            number(data["memorisation"]["p_value"]),
            number(data["memorisation"]["auc"]),
        ]
        for name, data in zip(names, found, strict=True)
    ]
    return f"## Privacy\n\n{table(['method', 'suspected copies', 'p (nearer to training)', 'AUC'], rows)}"
