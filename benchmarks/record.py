"""What every benchmark result carries: the machine, its load, the versions and the command; and where it is written."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("voxdiff", "torch", "diffusers", "numpy", "scipy", "monai", "ptwt", "PyWavelets")


def environment(device: str = "cpu") -> dict[str, Any]:
    """The machine as it is now. A load average above the number of threads used means that others were computing."""
    described = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "niceness": os.nice(0),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES if _installed(name)},
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return described


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``<name>.json`` under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


class PeakMemory:
    """Growth of this process's peak resident size, in MiB, over what it held at the start (Linux).

    The kernel's high-water mark is reset first; ``ru_maxrss`` would not do, which a child inherits from its parent.
    """

    def __enter__(self) -> "PeakMemory":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = _status_mb("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.growth_mb = round(_status_mb("VmHWM") - self._before, 1)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [header, rule, *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return run.stdout.strip()


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
