"""A report: protocol, results and warnings as plain values; written as JSON and Markdown, read back, compared."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from voxdiff.metrics.protocol import package_versions, protocol_hash
from voxdiff.metrics.sections import diversity, factors, pairs, privacy, unpaired
from voxdiff.volumes import atomic_path

FORMAT = "voxdiff evaluation report"
SECTIONS: dict[str, Callable[[Any], str]] = {
    "unpaired": unpaired.markdown,
    "diversity": diversity.markdown,
    "factors": factors.markdown,
    "paired": pairs.markdown,
    "privacy": privacy.markdown,
}
"""Name of a section in the results -> what writes it."""


@dataclass(kw_only=True)
class Report:
    """What `evaluate` found.

    Attributes:
        name: of the method that made the synthetic volumes.
        protocol: see :class:`voxdiff.metrics.protocol.Protocol`.
        synthetic: folder and SHA-256 of the synthetic volumes.
        real: folder of the real volumes.
        results: section -> plain values.
        subgroups: value of the subgroup column -> results of that subgroup.
        warnings: one sentence each.
        pictures: file names beside the report, with their captions.
        seconds: that the evaluation took, cached work not counted.
        versions: of the packages.
    """

    name: str
    protocol: dict[str, Any]
    synthetic: dict[str, Any]
    real: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    subgroups: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def protocol_hash(self) -> str:
        """Equal for reports that may be compared."""
        return protocol_hash(self.protocol)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"format": FORMAT, "protocol_hash": self.protocol_hash, **vars(self)}

    def save(self, folder: str | Path) -> None:
        """Write `report.json` and `report.md` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(self.to_dict()), indent=2, allow_nan=False) + "\n"
        for name, content in (("report.json", text), ("report.md", self.to_markdown())):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read `report.json`, or the one in a folder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no report, or its protocol was changed after it was written.
        """
        path = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no report {path}; give a report.json or the folder that holds one.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); give a report.json of `voxdiff evaluate`.") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no report of `voxdiff evaluate`; give a report.json that it wrote.")
        recorded = content.pop("protocol_hash", None)
        if recorded is None or {*content} != {field.name for field in fields(cls)}:
            raise ValueError(f"{path} was written by another version of voxdiff; evaluate again.")
        report = cls(**_numbers(content))
        if report.protocol_hash != recorded:
            raise ValueError(f"The protocol in {path} does not give its hash {recorded}; the file was changed by hand.")
        return report

    def to_markdown(self) -> str:
        """The report for people, fit for a model card."""
        protocol = self.protocol
        train = f", {protocol['num_train']} training" if protocol["num_train"] else ""
        lines = [
            f"# Evaluation of {self.name}\n",
            f"{protocol['num_synthetic']} synthetic against {protocol['num_real']} real volumes{train}, on a grid of "
            f"{' x '.join(map(str, protocol['grid']))} voxels of {' x '.join(f'{e:g}' for e in protocol['spacing_mm'])} "
            f"mm. {_preparation(protocol['preparation'])} Protocol `{self.protocol_hash}` (version "
            f"{protocol['version']}): reports with another hash are not comparable.\n",
        ]
        for name, results in self.results.items():
            lines.append(SECTIONS[name](results))
        for value, results in self.subgroups.items():
            lines.append(f"## Subgroup {value}\n")
            lines += [SECTIONS[name](found).replace("\n## ", "\n### ") for name, found in results.items()]
        lines += [f"![{caption}]({name})\n" for name, caption in self.pictures.items()]
        if self.warnings:
            lines.append("## Warnings\n\n" + "\n".join(f"- {warning}" for warning in self.warnings) + "\n")
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines.append(f"Seed {protocol['seed']}; {versions}.\n")
        return "\n".join(lines)


def _preparation(config: dict[str, Any]) -> str:
    if config["intensity"] == "window":
        return f"Intensities: window {config['low']:g} to {config['high']:g} ({config['unit']})."
    return f"Intensities: {config['intensity']} {config['low']} to {config['high']} of each volume, to [0, 1]."


def _plain(value: Any) -> Any:
    """Numpy values as Python's own, infinities as strings: strict JSON has neither."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _numbers(value: Any) -> Any:
    """The inverse of `_plain` for infinities."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value.replace("Infinity", "inf")) if value in ("Infinity", "-Infinity") else value
