"""Tables of `bench_patch_volume.py`, its differences between outputs, and its seconds of steps made into those of volumes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from record import markdown_table
from turns import Measured

OFFICIAL = "official float32"
STEPS_TIMED = 3  # of our sampler, in one call of the pipeline
STEPS = {"official": 1000, "voxdiff": 50}


def add_errors(
    measured: dict[str, Measured], outputs: Mapping[str, torch.Tensor], references: Mapping[str, Sequence[str]]
) -> None:
    """Difference of each output to its reference: largest, and root mean square over that of the reference.

    Args:
        measured: Where ``error``, ``largest_difference`` and ``error_to`` are added; nothing is for a reference itself.
        outputs: What ran, by name.
        references: Name -> references, of which the first that ran counts.
    """
    for name, output in outputs.items():
        reference = next((other for other in references[name] if other in outputs), name)
        if reference == name:
            continue
        expected = outputs[reference].float()
        difference = output.float() - expected
        measured[name]["error_to"] = reference
        measured[name]["largest_difference"] = float(difference.abs().max())
        measured[name]["error"] = float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def add_volumes(parts: dict[str, dict[str, Measured]]) -> None:
    """Steps times seconds of a step plus seconds of decoding, and the ratios of whole volumes.

    Args:
        parts: What was measured at one size; nothing is added to it without the parts sample and decode.
    """
    sample, decode = parts.get("sample", {}), parts.get("decode", {})
    for name, value in sample.items():
        if "median_s" not in value or "median_s" not in decode.get(name, {}):
            continue
        value["steps"] = STEPS[name.split()[0]]
        for clock in ("median_s", "cpu_s"):
            value[f"{clock}_per_volume"] = round(value["steps"] * value[f"{clock}_per_step"] + decode[name][clock], 2)
    official = sample.get(OFFICIAL, {})
    for value in sample.values():
        for clock in ("median_s", "cpu_s"):
            place = f"{clock}_per_volume"
            if place in value and place in official:
                value[f"official_over_this_{clock}"] = round(official[place] / value[place], 2)


def part_table(part: str, factor: int, size: int, measured: dict[str, Measured], device: str) -> str:
    clock, ratio, seconds = _clock(device)
    header = [f"{part} {factor}x, {size}³", seconds, "official / this", "peak growth MiB", "error", "error to"]
    rows = []
    for name, value in measured.items():
        if "out_of_memory" in value:
            rows.append([name, "out of memory", *["-"] * 4])
            continue
        cells = [f"{value[clock]:.3f}", f"{value[ratio]:.2f}" if value[ratio] else "-"]
        cells.append(f"{value['peak_memory_mb']:.0f}")
        compared = value.get("error") or "error_to" in value
        cells += [f"{value['error']:.1e}" if compared else "-", value.get("error_to", "-")]
        rows.append([f"{name} ({STEPS_TIMED} steps)" if part == "sample" and name != OFFICIAL else name, *cells])
    return markdown_table(header, rows)


def volume_table(factor: int, size: int, measured: dict[str, Measured], device: str) -> str:
    clock, _, seconds = _clock(device)
    header = [f"a volume, {factor}x, {size}³", "steps", seconds, "official / this"]
    rows = []
    for name, value in measured.items():
        if f"{clock}_per_volume" in value:
            ratio = value.get(f"official_over_this_{clock}")
            cells = [str(value["steps"]), f"{value[f'{clock}_per_volume']:.1f}", f"{ratio:.1f}" if ratio else "-"]
            rows.append([name, *cells])
    return markdown_table(header, rows)


def _clock(device: str) -> tuple[str, str, str]:
    """Which seconds and ratios are shown, and how they are called: a CPU's wall seconds are those of others too."""
    return ("median_s", "ratio", "seconds") if device.startswith("cuda") else ("cpu_s", "ratio_cpu", "CPU seconds")


def document(result: dict[str, Any]) -> str:
    """All tables, below what they were measured on."""
    lines = [f"# {result['what']}", "What is measured and how: the docstring of `benchmarks/bench_patch_volume.py`."]
    lines.append("\n".join(f"- {describe_run(run)}" for run in result["runs"]))
    device = result["runs"][0]["device"]
    for name, parts in result["results"].items():
        factor, size = (int(number) for number in name.split("x "))
        lines += [part_table(part, factor, size, values, device) for part, values in parts.items()]
        if {"sample", "decode"} <= set(parts):
            lines.append(volume_table(factor, size, parts["sample"], device))
    return "\n\n".join(lines) + "\n"


def describe_run(run: dict[str, Any]) -> str:
    """The command, the machine and how busy it was."""
    machine = run["environment"]
    where = machine.get("gpu") or f"{machine['processor']}, {run['threads']} thread(s) of {machine['cores']} cores"
    loads = f"load average {machine['load_average'][0]} at the start, {run['load_average_at_end'][0]} at the end"
    return f"`{machine['command']}` on {where}, torch {machine['versions']['torch']}; {loads}; {run['rounds']} round(s)"
