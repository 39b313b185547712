"""The report of `bench_resampling.py`."""

from collections.abc import Callable, Mapping
from typing import Any

from record import markdown_table

Found = Mapping[str, Any]


def document(parts: Mapping[str, Found]) -> str:
    """A section for each part that was measured."""
    blocks = [
        "# The data set tools of informed slices, on the simulated cohort",
        "What is measured and how: the docstring of `benchmarks/bench_resampling.py`.",
    ]
    for name, section in _SECTIONS.items():
        if name in parts:
            blocks += section(parts[name])
    return "\n\n".join(blocks) + "\n"


def _harmonise(found: Found) -> list[str]:
    first = next(iter(found["spread"].values()))
    rows = [["real", *(f"{entry['before']:.4f}" for entry in first.values())]]
    rows += [
        [
            name,
            *(
                f"{entry['after']:.4f}; x {entry['ratio']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"
                for entry in regions.values()
            ),
        ]
        for name, regions in found["spread"].items()
    ]
    protocol = found["protocol"]
    return [
        "## Harmonisation: standard deviation across subjects of the median intensity",
        f"{protocol['volumes']} subjects, {protocol['default_steps']} steps; the one slice is that of {found['donor']}. "
        "x: over the real one (95 %).",
        markdown_table(["volumes", *first], rows),
    ]


def _counterfactual(found: Found) -> list[str]:
    rows = [
        [kind, str(effect["n"]), _interval(effect["inside"]), _interval(effect["outside"]), f"{effect['ratio']:.1f}"]
        for kind, effect in found["edits"].items()
    ]
    rows.append(["noise", str(found["protocol"]["edits"]), "-", f"{found['noise']['mean']:.4f}", "-"])
    return [
        "## Counterfactuals: mean absolute change",
        markdown_table(["tumour", "subjects", "inside the edit", "rest of the brain", "mean ratio"], rows),
    ]


def _privacy(found: Found) -> list[str]:
    header = ["set", "volumes", "to nearest", "to owner", "to donor", "nearest is owner", "nearest is donor"]
    header += ["copies", "of owner", "of donor", "AUC", "p"]
    held = found["heldout"]
    rows = [["held-out real", str(held["volumes"]), f"{held['to_nearest']:.3f}", *["-"] * 9]]
    for name, entry in found["sets"].items():
        rows.append(
            [
                name,
                str(entry["volumes"]),
                *(_number(entry[key]) for key in ("to_nearest", "to_owner", "to_donor")),
                *(_share(entry[key]) for key in ("nearest_is_owner", "nearest_is_donor")),
                *(str(entry[key]) for key in ("copies", "copies_of_owner", "copies_of_donor")),
                f"{entry['auc']:.2f}",
                f"{entry['p_value']:.1e}",
            ]
        )
    return [
        "## Privacy: copy distances of an enhanced training set",
        f"Medians; {found['protocol']['references']} training subjects as references. A copy is nearer to one of them, "
        "relative to the next ones, than the threshold that held-out subjects give.",
        markdown_table(header, rows),
    ]


def _cost(found: Found) -> list[str]:
    rows = [
        [
            name,
            str(entry["windows"]),
            str(entry["calls"]),
            f"{entry['median_s']:.2f}",
            f"{entry['network_s']:.2f}",
            f"{entry['ratio']:.1f}",
            f"{entry['ratio_cpu']:.1f}",
        ]
        for name, entry in found["measured"].items()
    ]
    header = [
        "procedure",
        "windows through the network",
        "calls, windows of a wave together",
        "s a volume",
        "of these network",
    ]
    return [
        "## Cost of a volume",
        "The published code gives the network one window at a time, so its calls are its windows; the seconds are those of "
        "our pipeline, which batches both directions for either.",
        markdown_table([*header, "times faster", "in CPU time"], rows),
    ]


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


_SECTIONS: dict[str, Callable[[Found], list[str]]] = {
    "harmonise": _harmonise,
    "counterfactual": _counterfactual,
    "privacy": _privacy,
    "cost": _cost,
}
