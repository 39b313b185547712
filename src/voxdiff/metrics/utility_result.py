"""What a utility experiment found: means with intervals over its runs, and paired differences to training on real."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxdiff.metrics.markdown import estimate, number, table
from voxdiff.metrics.utility_runs import Mix, parse_mix

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class UtilityResult:
    """Runs of a utility experiment.

    Intervals are Student's, over runs (fold and seed): how much the training varies, not which subjects the test set
    happens to hold. The folds of a set overlap, so that they are somewhat too narrow.

    Attributes:
        protocol: task, training, data hashes, settings, folds and seeds, as plain values.
        runs: a record a run: setting, fold, seed, num_real, num_synthetic, metrics.
    """

    protocol: dict[str, Any]
    runs: list[dict[str, Any]]

    @property
    def reference(self) -> str | None:
        """The setting that is all of the real set and nothing else, None where the experiment has none."""
        found = [setting for setting in self.protocol["settings"] if parse_mix(setting) == Mix(real=1, synthetic=0)]
        return found[0] if found else None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return list(self.runs[0]["metrics"])

    def values(self, setting: str, metric: str) -> list[float]:
        """A metric of every run of a setting, in the order of folds and seeds."""
        chosen = sorted((run for run in self.runs if run["setting"] == setting), key=lambda run: _pair(run))
        return [run["metrics"][metric] for run in chosen]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Setting → metric → value (the mean), sd, low, high, and the same of the paired difference to real.

        Raises:
            ModuleNotFoundError: scipy is not installed.
        """
        summary: dict[str, dict[str, Any]] = {}
        for setting in self.protocol["settings"]:
            summary[setting] = {}
            for metric in self.metrics:
                values = self.values(setting, metric)
                entry: dict[str, Any] = mean_with_interval(values)
                if self.reference is not None and setting != self.reference:
                    real = self.values(self.reference, metric)
                    entry["difference"] = mean_with_interval(np.subtract(values, real).tolist())
                summary[setting][metric] = entry
        return summary

    def to_dict(self) -> dict[str, Any]:
        """Protocol, summary and runs as plain values, ready for JSON."""
        return {"protocol": self.protocol, "summary": self.summary(), "runs": self.runs}

    def to_markdown(self) -> str:
        """A paragraph of protocol and a table: means with intervals, and differences to training on real."""
        summary = self.summary()
        headline = [name for name in self.metrics if self.protocol["task"] != "segmentation" or " mean" in name]
        blocks = [self._protocol_sentence()]
        for metrics in (headline, [name for name in self.metrics if name not in headline]):
            if metrics:
                blocks.append(
                    table(self._header(metrics), [self._row(setting, metrics, summary) for setting in summary])
                )
        return "\n".join(blocks)

    def _protocol_sentence(self) -> str:
        protocol, training = self.protocol, self.protocol["training"]
        return (
            f"{protocol['task'].capitalize()}: {training['steps']} steps of {training['batch_size']} in every setting, "
            f"{protocol['folds']} fold(s) by {len(protocol['seeds'])} seed(s), tested on {protocol['num_test']} real "
            "volumes. Mean over runs (95 % interval over runs); difference to the same fold and seed trained on real.\n"
        )

    def _header(self, metrics: Sequence[str]) -> list[str]:
        header = ["trained on", "real", "synthetic"]
        for metric in metrics:
            header += [metric, "sd"] + (["difference"] if self.reference is not None else [])
        return header

    def _row(self, setting: str, metrics: Sequence[str], summary: dict[str, Any]) -> list[str]:
        first = next(run for run in self.runs if run["setting"] == setting)
        row = [setting, str(first["num_real"]), str(first["num_synthetic"])]
        for metric in metrics:
            entry = summary[setting][metric]
            row += [estimate(entry), number(entry["sd"])]
            row += [estimate(entry.get("difference"))] if self.reference is not None else []
        return row


def mean_with_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation and 95 % interval (Student's t); None where one value allows none.

    Raises:
        ModuleNotFoundError: scipy is not installed.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"value": mean, "sd": None, "low": None, "high": None}
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Intervals need scipy: pip install voxdiff[metrics].") from error
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + _CONFIDENCE) / 2, count - 1)) * deviation / count**0.5
    return {"value": mean, "sd": deviation, "low": mean - half, "high": mean + half}


def _pair(run: dict[str, Any]) -> tuple[int, int]:
    return run["fold"], run["seed"]
