"""What a pipeline call costs, measured from outside: seconds, peak memory, parameters and floating-point operations."""

import ctypes
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import voxdiff

_SAMPLING_SECONDS = 0.002
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """Cost of one pipeline call.

    Attributes:
        pipeline: class of the pipeline.
        arguments: of the call, as plain values; others by their type.
        device: where it ran.
        device_name: the processor or GPU.
        dtype: of the weights.
        threads: that torch uses on the CPU.
        repeats: timed calls.
        seconds_median: over the timed calls.
        seconds_min: the fastest.
        seconds_max: the slowest.
        peak_memory_mb: MiB. On CUDA, the most that was allocated during the timed calls, weights included; otherwise
            how far the process's resident memory rose above what it held, weights included, before the first call.
        weights_mb: MiB of all parameters and buffers.
        parameters: of each component that is a network.
        flops: of one call: convolutions, matrix products and attention, a multiply-add as 2 operations;
            element-wise work is not counted.
        versions: of the packages.
    """

    pipeline: str
    arguments: dict[str, Any]
    device: str
    device_name: str
    dtype: str
    threads: int
    repeats: int
    seconds_median: float
    seconds_min: float
    seconds_max: float
    peak_memory_mb: float
    weights_mb: float
    parameters: dict[str, int]
    flops: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def profile_pipeline(pipe: Any, *, repeats: int = 3, warmup: int = 1, **call_arguments: Any) -> ProfileReport:
    """Call a pipeline several times and measure it; nothing of it is changed.

    Args:
        pipe: any diffusers pipeline.
        repeats: timed calls.
        warmup: calls before them, at least 1; operations are counted in the first one.
        call_arguments: of every call. A generator goes on from call to call.

    Raises:
        ValueError: `repeats` or `warmup` is below 1.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; both must be at least 1.")
    device = torch.device(pipe.device)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    release_freed_memory()
    before = resident_bytes()
    counter = FlopCounterMode(display=False)
    with counter:
        pipe(**call_arguments)
    for _ in range(warmup - 1):
        pipe(**call_arguments)
    seconds, peak = _timed_calls(lambda: pipe(**call_arguments), repeats, device, before)
    return ProfileReport(
        pipeline=type(pipe).__name__,
        arguments={name: _plain(value) for name, value in call_arguments.items()},
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        dtype=str(pipe.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        repeats=repeats,
        seconds_median=statistics.median(seconds),
        seconds_min=min(seconds),
        seconds_max=max(seconds),
        peak_memory_mb=peak / _MIB,
        weights_mb=sum(_stored_bytes(network) for network in networks.values()) / _MIB,
        parameters={name: sum(weight.numel() for weight in part.parameters()) for name, part in networks.items()},
        flops=counter.get_total_flops(),
        versions=_versions(),
    )


def resident_bytes() -> int:
    """Memory of this process that is in RAM now.

    Raises:
        ModuleNotFoundError: the system has no /proc and psutil is not installed.
    """
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Measuring memory on this system needs psutil: pip install psutil.") from error
    return int(psutil.Process().memory_info().rss)


def release_freed_memory() -> None:
    """Give the system back what the GNU C library keeps of freed memory, whose use again would not show as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class PeakResidentMemory:
    """Samples the resident memory in a thread; ``peak`` is the most it saw, in bytes.

    ``ru_maxrss`` would not do: a process inherits it from the one that started it, and it never falls.
    """

    def __enter__(self) -> "PeakResidentMemory":
        release_freed_memory()
        self.peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resident_bytes())

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLING_SECONDS):
            self.peak = max(self.peak, resident_bytes())


def _timed_calls(call: Callable[[], Any], repeats: int, device: torch.device, before: int) -> tuple[list[float], int]:
    """Seconds of each call, and the peak memory in bytes as :class:`ProfileReport` defines it."""
    cuda, seconds = device.type == "cuda", []
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with PeakResidentMemory() as memory:
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return seconds, torch.cuda.max_memory_allocated(device) if cuda else max(0, memory.peak - before)


def _stored_bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def _versions() -> dict[str, str]:
    packages = {"voxdiff": voxdiff, "torch": torch, "diffusers": diffusers}
    return {name: str(package.__version__) for name, package in packages.items()} | {
        "python": platform.python_version()
    }


def _plain(value: Any) -> Any:
    """The value if JSON can hold it, otherwise the name of its type."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
