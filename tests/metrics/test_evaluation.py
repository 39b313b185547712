import json

import nibabel as nib
import numpy as np
import pytest
import torch

from voxdiff import CohortDataset
from voxdiff.metrics.evaluation import evaluate
from voxdiff.metrics.evaluation_sets import EvaluationOptions
from voxdiff.metrics.report import Report
from voxdiff.volume_files import make_image

SIZE = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """24 real subjects, 14 others as the synthetic set, 12 training subjects."""
    root = tmp_path_factory.mktemp("sets")
    for name, split, number in (("real", "test", 24), ("synthetic", "val", 14), ("train", "train", 12)):
        write_cohort_volumes(root / name, CohortDataset(number, split=split, size=SIZE))
    return root


def write_cohort_volumes(folder, subjects, change=lambda values: values):
    folder.mkdir()
    for place, subject in enumerate(subjects):
        write(folder / f"case-{place:02d}.nii.gz", change(subject["t1"][0].numpy()))


def write(path, values, unit="a.u.", spacing=13.0):
    nib.save(make_image(np.asarray(values, np.float32), np.diag([spacing] * 3 + [1.0]), unit=unit), path)


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    options = EvaluationOptions(factors="brain", pairs=6)
    found = evaluate(
        folders / "real", folders / "synthetic", train=folders / "train", out=out, name="toy", options=options
    )
    return out, found


def test_report_holds_every_section_with_intervals_and_anchors(report):
    _, found = report
    (space,) = found.results["unpaired"]
    row = space["rows"]["synthetic"]
    assert (row["n_reference"], row["n"]) == (24, 14)
    for metric in ("fid", "kid", "gaussian_mmd", "precision", "recall", "density", "coverage", "inception_score"):
        assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"], metric
    assert list(space["rows"]) == ["synthetic", "real", "blurred real", "mean image", "one repeated"]
    assert space["rows"]["mean image"]["recall"]["value"] <= space["rows"]["real"]["recall"]["value"]
    assert space["rows"]["one repeated"]["fid"]["value"] > space["rows"]["real"]["fid"]["value"]
    assert {"unpaired", "diversity", "factors", "privacy"} == set(found.results)
    assert any("rank-deficient" in warning for warning in found.warnings)


def test_files_are_complete_and_readable(report):
    out, found = report
    again = Report.load(out)
    assert again.protocol_hash == found.protocol_hash and again.to_markdown() == found.to_markdown()
    content = json.loads((out / "report.json").read_text())
    assert content["protocol"]["extractors"][0]["sha256"] and content["versions"]["torch"]
    text = (out / "report.md").read_text()
    assert found.protocol_hash in text and "nan" not in text.lower().replace("finance", "")
    for picture in ("montage.png", "embedding.png", "profiles.png", "neighbours.png"):
        assert (out / picture).stat().st_size > 5000 and f"({picture})" in text
    assert not list(out.rglob(".tmp*"))


def test_a_second_run_reuses_the_cache_and_gives_the_same(report, folders, monkeypatch):
    out, found = report
    from voxdiff.metrics.extractors.base import FeatureExtractor

    def forward(self, images):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(FeatureExtractor, "__call__", forward)
    options = EvaluationOptions(factors="brain", pairs=6)
    again = evaluate(
        folders / "real", folders / "synthetic", train=folders / "train", out=out, name="toy", options=options
    )
    assert again.results == found.results and again.protocol == found.protocol


def test_arrays_give_what_folders_give(folders, report):
    _, from_folders = report
    arrays = {
        name: [np.asarray(nib.load(path).dataobj) for path in sorted((folders / name).iterdir())]
        for name in ("real", "synthetic", "train")
    }
    found = evaluate(arrays["real"], arrays["synthetic"], train=arrays["train"], options=EvaluationOptions(pairs=6))
    assert found.results["unpaired"] == from_folders.results["unpaired"]


def test_without_training_volumes_half_of_the_reals_are_the_anchors(folders):
    found = evaluate(folders / "real", folders / "synthetic", options=EvaluationOptions(planes=True, pairs=6))
    space, *planes = found.results["unpaired"]
    rows = space["rows"]
    assert rows["real"]["n_reference"] == 12 and rows["real"]["n"] == 12
    assert rows["synthetic, against the reals of the anchors"]["n_reference"] == 12
    assert [data["plane"] for data in planes] == ["axial", "coronal", "sagittal"]
    assert "precision" not in planes[0]["rows"]["synthetic"] and "privacy" not in found.results


def test_a_blurred_set_is_told_from_a_good_one(folders, tmp_path):
    subjects = CohortDataset(14, split="val", size=SIZE)
    from voxdiff.metrics.anchors import gaussian_blur

    write_cohort_volumes(
        tmp_path / "blurred", subjects, lambda values: gaussian_blur(torch.from_numpy(values)[None], 1.0)[0].numpy()
    )
    options = EvaluationOptions(pairs=6)
    good, bad = (
        evaluate(folders / "real", folder, options=options) for folder in (folders / "synthetic", tmp_path / "blurred")
    )
    fid = [found.results["unpaired"][0]["rows"]["synthetic"]["fid"] for found in (good, bad)]
    assert fid[1]["value"] > 2 * fid[0]["value"]
    assert good.protocol_hash == bad.protocol_hash


def test_pairs_masks_labels_and_subgroups(folders, tmp_path):
    subjects = list(CohortDataset(14, split="val", size=SIZE))
    rng = np.random.default_rng(0)
    for name, change in (
        ("real", lambda v: v),
        ("synthetic", lambda v: np.clip(v + rng.normal(0, 0.05, v.shape), 0, 1)),
    ):
        write_cohort_volumes(tmp_path / name, subjects, change)
        rows = [f"case-{place:02d}.nii.gz,{'left' if place % 2 else 'right'}" for place in range(14)]
        (tmp_path / name / "metadata.csv").write_text("file_name,site\n" + "\n".join(rows))
        (tmp_path / f"{name}-labels").mkdir()
        for place in range(14):
            labels = np.zeros((SIZE,) * 3)
            labels[4:8, 4:8, 4 : 8 + (name == "synthetic")] = 3
            write(tmp_path / f"{name}-labels" / f"case-{place:02d}.nii.gz", labels, "label")
    (tmp_path / "masks").mkdir()
    for place, subject in enumerate(subjects):
        write(tmp_path / "masks" / f"case-{place:02d}.nii.gz", subject["tissue"][0].numpy() > 0, "label")
    found = evaluate(
        tmp_path / "real",
        tmp_path / "synthetic",
        masks=tmp_path / "masks",
        labels=(tmp_path / "real-labels", tmp_path / "synthetic-labels"),
        out=tmp_path / "out",
        options=EvaluationOptions(paired=True, subgroup="site", pairs=6),
    )
    summary = found.results["paired"]["summary"]
    assert summary["psnr"]["n"] == 14 and 20 < summary["psnr"]["mean"] < 35
    assert summary["dice_ET"]["mean"] == pytest.approx(2 * 64 / (64 + 80))
    assert "lesion_volume_ml" in found.results["factors"]["factors"]
    assert set(found.subgroups) == {"left", "right"}
    assert found.subgroups["left"]["paired"]["summary"]["psnr"]["n"] == 7
    assert found.subgroups["left"]["unpaired"][0]["rows"]["synthetic"]["n"] == 7
    assert len((tmp_path / "out" / "cases.csv").read_text().splitlines()) == 15
    assert "Subgroup left" in found.to_markdown()


def test_bad_input_is_one_sentence_before_any_work(folders, tmp_path, monkeypatch):
    from voxdiff.metrics import evaluation as module

    def heavy(*args, **kwargs):
        raise AssertionError("heavy work began")

    monkeypatch.setattr(module, "extract_features", heavy)
    real, synthetic = folders / "real", folders / "synthetic"
    (tmp_path / "empty").mkdir()
    for name, values in (
        ("one", {"a": np.random.rand(SIZE, SIZE, SIZE)}),
        ("grid", {f"{i}": np.random.rand(SIZE, SIZE, 12) for i in range(8)}),
        ("scale", {f"{i}": 255 * np.random.rand(SIZE, SIZE, SIZE) for i in range(8)}),
        ("nan", {f"{i}": np.full((SIZE, SIZE, SIZE), np.nan if i == 3 else 0.5) for i in range(8)}),
    ):
        (tmp_path / name).mkdir()
        for stem, array in values.items():
            array = array.copy()
            array.flat[0] = 0.1
            write(tmp_path / name / f"{stem}.nii.gz", array)
    (tmp_path / "empty-masks").mkdir()
    for i in range(24):
        write(tmp_path / "empty-masks" / f"case-{i:02d}.nii.gz", np.zeros((SIZE,) * 3), "label")
    for name in ("black", "hu", "unnamed"):
        (tmp_path / name).mkdir()
        for i in range(14 if name == "hu" else 8):
            array = np.random.rand(SIZE, SIZE, SIZE) * {"black": 0, "hu": 1500, "unnamed": 1}[name]
            values, unit = (array - 1000, "HU") if name == "hu" else (array, None if name == "unnamed" else "a.u.")
            write(tmp_path / name / f"{i}.nii.gz", values, unit)
    (tmp_path / "spacing").mkdir()
    for i in range(8):
        write(tmp_path / "spacing" / f"{i}.nii.gz", np.random.rand(SIZE, SIZE, SIZE), spacing=2.0)
    (tmp_path / "masks").mkdir()
    write(tmp_path / "masks" / "other.nii.gz", np.ones((SIZE,) * 3), "label")

    cases = [
        ((tmp_path / "none", synthetic), {}, {}, "does not exist"),
        ((real, tmp_path / "empty"), {}, {}, "holds no NIfTI volume"),
        ((real, tmp_path / "one"), {}, {}, r"synthetic set has 1 volume\(s\)"),
        ((tmp_path / "one", synthetic), {}, {}, r"real set has 1 volume\(s\)"),
        ((real, tmp_path / "grid"), {}, {}, "one grid with --size"),
        ((real, tmp_path / "spacing"), {}, {}, "voxels of 2 x 2 x 2 mm.*--spacing"),
        ((real, tmp_path / "scale"), {}, {}, "bring both sets to one scale"),
        ((real, tmp_path / "nan"), {}, {}, r"1 of the 8 volumes.*NaN"),
        ((real, real), {"masks": tmp_path / "masks"}, {"paired": True}, "masks.*do not match"),
        ((real, real), {"masks": tmp_path / "masks"}, {}, "without paired"),
        ((real, synthetic), {}, {"paired": True}, "do not match"),
        ((real, synthetic), {}, {"extractors": ("inception",)}, "no extractor 'inception'"),
        ((real, synthetic), {}, {"subgroup": "site"}, "metadata.csv"),
        ((real, synthetic), {}, {"reidentify": True}, "give --train"),
        ((real, synthetic), {}, {"num": 20}, "holds 14 volumes and 20 are asked for"),
        ((real, synthetic), {}, {"factors": "ct"}, "told by HU"),
        ((real, synthetic), {"train": real}, {"extractors": ("cohort-2d",)}, "add a 3D extractor"),
        ((real, tmp_path / "black"), {}, {}, "8 of the 8 volumes.*one value"),
        ((real, synthetic), {"out": tmp_path / "one" / "a.nii.gz"}, {}, "is a file"),
        ((real, synthetic), {}, {"device": "warp"}, "device 'warp' is unknown"),
        ((real, real), {"masks": tmp_path / "empty-masks"}, {"paired": True}, "24 masks.*are empty"),
        ((tmp_path / "hu", tmp_path / "unnamed"), {}, {}, "name the right unit"),
        ((real, synthetic), {"train": real}, {}, "24 of the 24 held-out volumes.*are in the training set"),
    ]
    for sets, arguments, options, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            evaluate(*sets, **arguments, options=EvaluationOptions(**options))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("pairs", 2), ("num", -3), ("seed", -1), ("slices_per_plane", 0)])
def test_options_that_cannot_be_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        EvaluationOptions(**{option: value})


def test_volumes_and_labels_side_by_side_are_told_by_patterns(tmp_path):
    for name in ("real", "synthetic"):
        for place in range(14):
            folder = tmp_path / name / f"s{place}"
            folder.mkdir(parents=True)
            random = np.random.default_rng(place)
            write(folder / "a_t1.nii.gz", random.random((SIZE, SIZE, SIZE)))
            write(folder / "a_lesion.nii.gz", random.integers(0, 4, (SIZE, SIZE, SIZE)), "label")
    labels = (tmp_path / "real", tmp_path / "synthetic")
    options = EvaluationOptions(paired=True, pattern="*_t1.nii.gz", label_pattern="*_lesion.nii.gz", pairs=3)
    found = evaluate(tmp_path / "real", tmp_path / "synthetic", labels=labels, options=options).results["paired"]
    assert [case["case"] for case in found["cases"]][:2] == ["s0/a", "s1/a"]
    assert found["summary"]["dice_WT"]["mean"] == 1 and found["summary"]["psnr"]["infinite"] == 14


def test_the_order_of_the_training_volumes_is_part_of_the_protocol(folders):
    volumes = {
        name: [np.asarray(nib.load(path).dataobj) for path in sorted((folders / name).iterdir())]
        for name in ("real", "synthetic", "train")
    }
    options = EvaluationOptions(pairs=3)
    hashes = {
        evaluate(volumes["real"][:7], volumes["synthetic"][:7], train=train, options=options).protocol_hash
        for train in (volumes["train"], volumes["train"][::-1])
    }
    assert len(hashes) == 2


def test_a_subgroup_that_the_generator_never_makes_is_warned_about(folders, tmp_path):
    for name, split, values in (("real", "test", "MF" * 7), ("synthetic", "val", "M" * 14)):
        write_cohort_volumes(tmp_path / name, CohortDataset(14, split=split, size=SIZE))
        rows = [f"case-{place:02d}.nii.gz,{value}" for place, value in enumerate(values)]
        (tmp_path / name / "metadata.csv").write_text("file_name,sex\n" + "\n".join(rows))
    options = EvaluationOptions(subgroup="sex", pairs=3)
    found = evaluate(tmp_path / "real", tmp_path / "synthetic", options=options)
    assert set(found.subgroups) == {"M"} and "needs 14 real volumes" in found.to_markdown()
    assert any("sex F has 7 of the 14 real and 0 of the 14 synthetic" in warning for warning in found.warnings)
