"""Paired metrics by closed forms, their summary, and the comparison of two methods."""

import csv
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from voxdiff.metrics.gradient_similarity import four_g_ssim, four_ms_g_ssim
from voxdiff.metrics.paired import compare_paired, paired_metrics, summarize, write_csv
from voxdiff.metrics.structural import multiscale_ssim, ssim


@pytest.fixture
def hounsfield():
    """A pair in HU, inside a window of -1000 to 1000, that differs by -30 HU in half of its voxels."""
    generator = np.random.default_rng(0)
    real = 1800 * generator.random((24, 22, 23)).cumsum(0).astype(np.float32) / 24 - 900
    synthetic = real.copy()
    synthetic[:12] -= 30
    return real, synthetic


def test_errors_are_in_hu_and_the_range_is_the_window(hounsfield):
    result = paired_metrics(*hounsfield, data_range=2000, low=-1000)
    assert list(result) == ["mse", "mae", "psnr", "ssim", "ms_ssim", "four_g_ssim", "four_ms_g_ssim", "ms_ssim_scales"]
    assert result["mae"] == pytest.approx(15, abs=1e-4)
    assert result["mse"] == pytest.approx(450, abs=1e-2)
    assert result["psnr"] == pytest.approx(10 * math.log10(2000**2 / 450), abs=1e-5)
    assert result["ms_ssim_scales"] == 2


def test_structure_is_that_of_intensities_from_the_low_end_whatever_the_unit(hounsfield):
    result = paired_metrics(*hounsfield, data_range=2000, low=-1000)
    scaled = [torch.from_numpy(volume.astype(float) + 1000)[None, None] / 2000 for volume in hounsfield]
    assert result["ssim"] == pytest.approx(ssim(*scaled, data_range=1).item(), abs=1e-9)
    assert result["ms_ssim"] == pytest.approx(multiscale_ssim(*scaled, data_range=1, scales=2).item(), abs=1e-9)
    assert result["four_g_ssim"] == pytest.approx(four_g_ssim(*scaled, data_range=1).item(), abs=1e-9)
    assert result["four_ms_g_ssim"] == pytest.approx(four_ms_g_ssim(*scaled, data_range=1, scales=2).item(), abs=1e-9)
    relative = paired_metrics(*(volume[0] for volume in scaled), data_range=1)
    for metric in ("psnr", "ssim", "ms_ssim", "four_g_ssim", "four_ms_g_ssim"):
        assert relative[metric] == pytest.approx(result[metric], abs=1e-9)


def test_inside_a_mask(hounsfield):
    mask = np.zeros(hounsfield[0].shape, dtype=bool)
    mask[8:16, 4:18, 4:18] = True
    inside = paired_metrics(*hounsfield, data_range=2000, low=-1000, mask=mask)
    assert inside["mae"] == pytest.approx(15, abs=1e-4)
    mask[8:12] = False
    outside = paired_metrics(*hounsfield, data_range=2000, low=-1000, mask=mask)
    assert outside["mae"] == outside["mse"] == 0 and outside["psnr"] == math.inf
    tensors = [torch.from_numpy(volume.astype(float) + 1000)[None, None] for volume in hounsfield]
    settings = {"data_range": 2000, "mask": torch.from_numpy(mask)}
    assert outside["ssim"] == pytest.approx(ssim(*tensors, **settings).item(), abs=1e-9)
    assert outside["ms_ssim"] == pytest.approx(multiscale_ssim(*tensors, scales=2, **settings).item(), abs=1e-9)
    assert outside["four_g_ssim"] == pytest.approx(four_g_ssim(*tensors, **settings).item(), abs=1e-9)
    assert outside["four_ms_g_ssim"] == pytest.approx(four_ms_g_ssim(*tensors, scales=2, **settings).item(), abs=1e-9)
    assert all(inside[metric] != outside[metric] for metric in list(inside)[:-1])


def test_equal_volumes_have_an_infinite_psnr(hounsfield):
    real, _ = hounsfield
    result = paired_metrics(real, real, data_range=2000, low=-1000)
    assert result["psnr"] == math.inf
    for metric in ("ssim", "ms_ssim", "four_g_ssim", "four_ms_g_ssim"):
        assert result[metric] == 1


def test_bad_input_explains_itself(hounsfield):
    real, synthetic = hounsfield
    broken = synthetic.copy()
    broken[0, 0, 0] = np.nan
    window = {"data_range": 2000, "low": -1000}
    for volumes, settings, message in [
        ((real, synthetic[1:]), window, "same shape"),
        ((real[0], synthetic[0]), window, r"give \(x, y, z\)"),
        ((real, broken), window, "NaN"),
        ((real, synthetic), {"data_range": -1}, "data_range is -1"),
        ((real, synthetic), {"data_range": 2000}, r"from -\d+.* outside the data range 0 to 2000"),
        ((real, synthetic), {"data_range": 1000, "low": -1000}, "outside the data range -1000 to 0"),
        ((real, synthetic), {**window, "mask": np.zeros(real.shape, dtype=bool)}, "mask is empty"),
        ((real[:10], synthetic[:10]), window, "kernel_size is 11"),
    ]:
        with pytest.raises(ValueError, match=message):
            paired_metrics(*volumes, **settings)


def rows(values, metric="mae"):
    return [{"case": f"sub-{index}", metric: value} for index, value in enumerate(values)]


def test_summary_of_cases():
    values = np.random.default_rng(1).normal(5, 2, 200)
    summary = summarize([{**row, "site": "A"} for row in rows(values)])
    assert list(summary) == ["mae"]
    mae = summary["mae"]
    assert mae["mean"] == pytest.approx(values.mean()) and mae["sd"] == pytest.approx(values.std(ddof=1))
    half = 1.96 * values.std(ddof=1) / 200**0.5
    assert mae["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert mae["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (mae["n"], mae["infinite"]) == (200, 0)
    assert summary == summarize(rows(values)) != summarize(rows(values), seed=1)


def test_infinite_values_are_counted_beside_the_mean_of_the_others():
    psnr = summarize(rows([20.0, math.inf, 30.0], "psnr"))["psnr"]
    assert (psnr["mean"], psnr["n"], psnr["infinite"]) == (25, 3, 1)
    assert 20 <= psnr["low"] < psnr["high"] <= 30
    every = summarize(rows([math.inf] * 3, "psnr"))["psnr"]
    assert every == {"mean": math.inf, "sd": 0, "low": math.inf, "high": math.inf, "n": 3, "infinite": 3}
    alone = summarize(rows([3.0]))["mae"]
    assert alone["mean"] == 3 and math.isnan(alone["sd"]) and math.isnan(alone["low"])


def test_cases_that_cannot_be_summarized():
    with pytest.raises(ValueError, match="no case"):
        summarize([])
    with pytest.raises(ValueError, match="metrics mae, psnr"):
        summarize([*rows([1.0]), *rows([1.0], "psnr")])
    with pytest.raises(ValueError, match="NaN for mae"):
        summarize(rows([1.0, math.nan]))


def test_two_methods_are_matched_by_case():
    generator = np.random.default_rng(2)
    difficulty = generator.normal(50, 20, 30)
    a, b = difficulty + generator.normal(1, 0.5, 30), difficulty
    result = compare_paired(rows(a), rows(b)[::-1])["mae"]
    assert result["mean"] == pytest.approx((a - b).mean())
    assert 0.7 < result["low"] < result["mean"] < result["high"] < 1.3
    assert result["p_value"] == pytest.approx(stats.wilcoxon(a, b).pvalue) and result["p_value"] < 1e-6
    assert compare_paired(rows(b), rows(a))["mae"]["mean"] == pytest.approx(-result["mean"])
    same = compare_paired(rows(a), rows(a))["mae"]
    assert (same["mean"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_two_methods_with_infinite_psnr():
    result = compare_paired(rows([math.inf, math.inf, 30.0, 25.0], "psnr"), rows([math.inf, 40.0, 29.0, 25.0], "psnr"))[
        "psnr"
    ]
    assert (result["mean"], result["infinite"], result["n"]) == (pytest.approx(1 / 3), 1, 4)
    assert 0 < result["p_value"] <= 1


def test_methods_that_were_not_measured_alike():
    with pytest.raises(ValueError, match=r"sub-2 \(1 in all\) belong to one only"):
        compare_paired(rows([1.0, 2.0, 3.0]), rows([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"sub-0, sub-1 \(2 in all\)"):
        compare_paired(rows([1.0, 2.0])[:1], rows([1.0, 2.0])[1:])
    with pytest.raises(ValueError, match="2 cases have 1 different ids"):
        compare_paired(rows([1.0]) * 2, rows([1.0, 2.0]))
    with pytest.raises(ValueError, match="1 cases have 0 different ids"):
        compare_paired([{"mae": 1.0}], rows([1.0]))
    with pytest.raises(ValueError, match="metrics mae, psnr"):
        compare_paired(rows([1.0]), rows([1.0], "psnr"))


def test_a_csv_keeps_every_digit(tmp_path):
    cases = [
        {"case": "sub,1", "site": "A", "mae": 1 / 3, "psnr": math.inf},
        {"case": "sub-2", "site": "B", "mae": 2, "psnr": 3.5},
    ]
    write_csv(cases, tmp_path / "cases.csv")
    with open(tmp_path / "cases.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["case"] for row in read] == ["sub,1", "sub-2"] and [row["site"] for row in read] == ["A", "B"]
    assert float(read[0]["mae"]) == 1 / 3 and float(read[0]["psnr"]) == math.inf
    with pytest.raises(ValueError, match="no case"):
        write_csv([], tmp_path / "none.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_missing_scipy_explains_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ModuleNotFoundError, match=r"voxdiff\[metrics\]"):
        compare_paired(rows([1.0, 2.0]), rows([2.0, 1.0]))
