"""The pytest plugin that skips what cannot judge us, and keeps the outcome and reason of every test."""

import os
import re
from collections import Counter, defaultdict

import pytest
from inapplicable import HARDWARE_ONLY, INAPPLICABLE

UPSTREAM_MARKERS = (
    "attention autoround big_accelerator bitsandbytes cache compile context_parallel cpu_offload gguf group_offload "
    "ip_adapter lora memory modelopt nightly quantization quanto sdnq single_file slow tensor_parallel torchao training"
)
DEPENDENCY = re.compile(r"peft|bitsandbytes|torchao|quanto|gguf|xformers|token|kernels|not installed", re.IGNORECASE)
HARDWARE = re.compile(
    r"accelerator|CPU|CUDA|XPU|multiple|GPU|Neuron|half-precision|fp8|compute capability", re.IGNORECASE
)


class Outcomes:
    """Collects (outcome, reason) of each test.

    Args:
        relax: Whether to run on the CPU what upstream marks as needing an accelerator.
    """

    def __init__(self, relax: bool) -> None:
        self.relax = relax
        self.rows: dict[str, tuple[str, str]] = {}
        self.collection_errors: list[str] = []

    def pytest_configure(self, config):
        for marker in UPSTREAM_MARKERS.split():
            config.addinivalue_line("markers", f"{marker}: upstream's")
        config.addinivalue_line("filterwarnings", "ignore")

    def pytest_collectreport(self, report):
        if report.failed:
            self.collection_errors.append(str(report.longrepr))

    def pytest_collection_modifyitems(self, items):
        for item in items:
            name = item.name.split("[")[0]
            reason = self._reason_to_skip(item.cls.conformance_case, item.cls.conformance_group, name)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason), append=False)
            elif self.relax:
                for node in item.listchain():
                    node.own_markers = [marker for marker in node.own_markers if not _asks_for_accelerator(marker)]

    def pytest_runtest_logreport(self, report):
        key = report.nodeid.split("::", 1)[1]
        if self.rows.get(key, ("", ""))[0] == "failed" or (report.when != "call" and report.passed):
            return
        self.rows[key] = (report.outcome, "" if report.passed else _reason(report))

    def counts(self) -> Counter:
        """How many tests passed, failed and were skipped."""
        return Counter(outcome for outcome, _ in self.rows.values())

    def failures(self) -> list[tuple[str, str]]:
        """Each failed test and its message."""
        return [(key, reason) for key, (outcome, reason) in sorted(self.rows.items()) if outcome == "failed"]

    def skips(self) -> dict[str, dict[str, list[str]]]:
        """Category -> reason -> tests."""
        skips = defaultdict(lambda: defaultdict(list))
        for key, (outcome, reason) in sorted(self.rows.items()):
            if outcome == "skipped":
                skips[_category(reason)][reason].append(key)
        return skips

    def _reason_to_skip(self, case, group: str, name: str) -> str | None:
        reason = case.inapplicable.get(name) or INAPPLICABLE.get(f"{group}::{name}")
        if reason:
            return f"INAPPLICABLE: {reason}"
        if self.relax and name in HARDWARE_ONLY and os.environ["DIFFUSERS_TEST_DEVICE"] == "cpu":
            return f"HARDWARE: {HARDWARE_ONLY[name]}"
        return None


def _asks_for_accelerator(marker: pytest.Mark) -> bool:
    reason = str(marker.kwargs.get("reason", "")).lower()
    return marker.name == "skipif" and "accelerator" in reason and "multiple" not in reason


def _reason(report) -> str:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return " ".join((crash.message if crash else str(report.longrepr)).split())[:400]
    if getattr(report, "wasxfail", ""):
        return f"XFAIL: {report.wasxfail}"
    longrepr = report.longrepr
    return (longrepr[2] if isinstance(longrepr, tuple) else str(longrepr).splitlines()[-1]).removeprefix("Skipped: ")


def _category(reason: str) -> str:
    if reason.startswith("INAPPLICABLE"):
        return "inapplicable"
    if reason.startswith("XFAIL"):
        return "expected to fail upstream"
    if reason.startswith("HARDWARE"):
        return "needs an accelerator"
    if "is not supported for this" in reason:
        return "skips itself: the class has no such feature"
    if DEPENDENCY.search(reason):
        return "optional dependency missing"
    if HARDWARE.search(reason):
        return "needs an accelerator"
    return "skips itself: the class has no such feature"
