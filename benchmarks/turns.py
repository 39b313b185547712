"""Calls measured in turn, round by round, so that a busy machine slows all of them alike."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from record import PeakMemory

Call = Callable[[], torch.Tensor]
Measured = dict[str, Any]


def take_turns(
    calls: dict[str, Call], *, rounds: int, device: str, reference: str
) -> tuple[dict[str, Measured], dict[str, torch.Tensor]]:
    """Time and memory of each call, the first of a round rotating, and what each returned at first, on the CPU.

    Nothing is warmed up: several rounds are needed where a call takes less than seconds. A call that runs out of memory
    on a GPU is not made again, and its record says so.

    Returns:
        Name -> ``min_s``, ``median_s``, ``cpu_s`` (processor seconds, median), ``peak_memory_mb`` (growth in MiB, the
        largest) and, where there is a ``reference``, ``ratio`` and ``ratio_cpu``: median over rounds of its seconds over
        this call's. Name -> output.
    """
    names, outputs = list(calls), {}
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    failed: set[str] = set()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in failed:
                continue
            try:
                run, output = measure_call(calls[name], device)
            except torch.cuda.OutOfMemoryError:
                failed.add(name)
                continue
            runs[name].append(run)
            outputs.setdefault(name, output.cpu())
            del output
    failed_at = {name: {"out_of_memory": True} for name in failed}
    measured = {
        name: failed_at.get(name) or summarise(runs[name], runs.get(reference, []) if reference not in failed else [])
        for name in names
    }
    return measured, {name: output for name, output in outputs.items() if name not in failed}


def measure_call(call: Call, device: str) -> tuple[Measured, torch.Tensor]:
    """One call: ``seconds``, ``cpu`` seconds, ``peak_memory_mb``; and its output."""
    gc.collect()
    if not device.startswith("cuda"):
        release_memory()
        with PeakMemory() as peak:
            started, used = time.perf_counter(), time.process_time()
            output = call()
            run = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
        return {**run, "peak_memory_mb": peak.growth_mb}, output
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    started, used = time.perf_counter(), time.process_time()
    output = call()
    torch.cuda.synchronize()
    run = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
    return {**run, "peak_memory_mb": round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)}, output


def release_memory() -> None:
    """Give freed memory back to the system: what is reused later would not count as growth."""
    ctypes.CDLL(None).malloc_trim(0)


def summarise(runs: list[Measured], reference: list[Measured]) -> Measured:
    """One record of several runs, and the ratios to those of the reference in the same rounds."""
    summary: Measured = {
        "min_s": round(min(run["seconds"] for run in runs), 4),
        "median_s": round(statistics.median(run["seconds"] for run in runs), 4),
        "cpu_s": round(statistics.median(run["cpu"] for run in runs), 4),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
    }
    for name, clock in (("ratio", "seconds"), ("ratio_cpu", "cpu")):
        pairs = zip(reference, runs, strict=True) if reference else []
        ratios = [theirs[clock] / ours[clock] for theirs, ours in pairs]
        summary[name] = round(statistics.median(ratios), 3) if ratios else None
    return summary
