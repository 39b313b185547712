import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from voxdiff.metrics.comparison import compare_reports
from voxdiff.metrics.evaluation import evaluate
from voxdiff.metrics.evaluation_sets import EvaluationOptions
from voxdiff.metrics.factor_distances import factor_distances
from voxdiff.metrics.report import Report


def brains(number, first, noise=0.0):
    """Bright balls of different sizes on a dark ground, quicker than subjects."""
    axes = np.linspace(-1, 1, 16)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(axes, axes, axes)))
    found = []
    for seed in range(first, first + number):
        random = np.random.default_rng(seed)
        ball = 1 / (1 + np.exp(30 * (radius - random.uniform(0.5, 0.9))))
        found.append(np.clip(0.8 * ball + noise * random.normal(size=ball.shape), 0, 1).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def reports():
    options = EvaluationOptions(paired=True, pairs=6)
    real = brains(14, 0)
    return [
        evaluate(real, brains(14, 0, noise), name=name, options=options)
        for name, noise in (("clean", 0.01), ("noisy", 0.2))
    ]


def test_one_table_of_all_methods_with_paired_differences(reports):
    text = compare_reports(reports)
    assert text.count("| clean |") >= 3 and text.count("| noisy |") >= 3
    assert "*blurred real*" in text and reports[0].protocol_hash in text
    (line,) = [line for line in text.splitlines() if line.startswith("| PSNR (dB) |")]
    clean, noisy = (report.results["paired"]["summary"]["psnr"]["mean"] for report in reports)
    assert f"{clean - noisy:.3f}" in line


def test_a_factor_that_is_constant_among_the_reals_is_a_dash(reports):
    compared = []
    for report in reports:
        generator = np.random.default_rng(0)
        sets = [
            [
                {"components": 1, "sharpness": 14 * (1 + 1e-16 * place), "volume": generator.normal()}
                for place in range(8)
            ],
            [{"components": place, "sharpness": 14 + place, "volume": generator.normal()} for place in range(8)],
        ]
        found = {name: asdict(distance) for name, distance in factor_distances(*sets).items()}
        compared.append(replace(report, results={**report.results, "factors": {"kind": None, "factors": found}}))
    text = compare_reports(compared)
    (floor,) = [line for line in text.splitlines() if line.startswith("| *real halves* |")]
    assert floor.startswith("| *real halves* | - | - | ") and not floor.endswith("| - |")
    (row,) = [line for line in compared[0].to_markdown().splitlines() if line.startswith("| components |")]
    assert row.endswith("| - | - |")
    assert "nan" not in compared[0].to_markdown()


def test_diversity_stands_beside_its_anchors(reports):
    section = compare_reports(reports).split("## Diversity")[1].split("\n## ")[0]
    for anchor in ("real", "blurred real", "mean image", "one repeated"):
        assert f"| *{anchor}* |" in section


def test_reports_on_disk_are_compared_too(reports, tmp_path):
    for report in reports:
        report.save(tmp_path / report.name)
    assert compare_reports([tmp_path / "clean", tmp_path / "noisy" / "report.json"]) == compare_reports(reports)


def test_other_protocols_are_refused_and_named(reports):
    other = evaluate(brains(14, 0), brains(13, 50), name="fewer", options=EvaluationOptions(paired=False, pairs=6))
    with pytest.raises(ValueError, match="num_synthetic is 14 and 13") as error:
        compare_reports([reports[0], other])
    assert reports[0].protocol_hash in str(error.value) and other.protocol_hash in str(error.value)


def test_two_methods_of_one_name_stay_apart(reports):
    text = compare_reports([reports[0], reports[0]])
    assert "clean (1)" in text and "clean (2)" in text


def test_one_report_is_not_a_comparison(reports):
    with pytest.raises(ValueError, match="at least two"):
        compare_reports(reports[:1])


def test_a_report_survives_its_file(reports, tmp_path):
    report = reports[0]
    report.results["paired"]["summary"]["psnr"]["high"] = math.inf
    report.save(tmp_path)
    again = Report.load(tmp_path / "report.json")
    assert again.results["paired"]["summary"]["psnr"]["high"] == math.inf
    assert again.protocol == report.protocol and again.to_markdown() == report.to_markdown()


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("{}", "is no report"), ("[1]", "is no report")],
)
def test_a_file_that_is_no_report(tmp_path, content, words):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        Report.load(tmp_path)


def test_a_protocol_changed_by_hand_is_noticed(reports, tmp_path):
    reports[1].save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    content["protocol"]["seed"] = 5
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed by hand"):
        Report.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no report"):
        Report.load(tmp_path / "none")
