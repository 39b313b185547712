import pytest
import torch
import typer
from goldens import load_golden
from typer.testing import CliRunner

import voxdiff
from voxdiff.cli.convert import convert

app = typer.Typer()
app.command()(convert)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(load_golden("wdm_unet")[1], path)
    return path


def test_convert_writes_a_folder_that_loads(checkpoint, tmp_path):
    out = tmp_path / "out"
    result = run("wdm", checkpoint, out, "--preset", "brats-128", "--norm-num-groups", 2)
    assert result.exit_code == 0, result.output
    assert "Written" in result.stdout and str(out) in result.stdout
    assert voxdiff.Pipeline.from_pretrained(out).output_names == ["t1n"]


@pytest.mark.parametrize(
    "name, preset, groups, reason",
    [
        ("maisi", "brats-128", 2, "There is no converter 'maisi'; choose one of wdm, cwdm,"),
        ("wdm", "brats-512", 2, "The preset 'brats-512' is unknown"),
        ("wdm", "cwdm-t1n", 2, "belongs to 'cwdm' models"),
        ("wdm", "lidc-256", 2, "levels is 6 in the preset and 5 in the tensors"),
        ("wdm", "lidc-128", 32, "32 groups"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(name, preset, groups, reason, checkpoint, tmp_path):
    result = run(name, checkpoint, tmp_path / "out", "--preset", preset, "--norm-num-groups", groups)
    assert result.exit_code == 1 and result.stdout == ""
    assert reason in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_files_that_are_absent_or_in_the_way_are_named(checkpoint, tmp_path):
    absent = run("wdm", tmp_path / "absent.pt", tmp_path / "out", "--preset", "brats-128")
    assert absent.exit_code == 1 and "absent.pt" in absent.stderr
    taken = run("wdm", checkpoint, tmp_path, "--preset", "brats-128")
    assert taken.exit_code == 1 and "exists already" in taken.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["wdm"], "--preset is missing"),
        (["wdm", "--autoencoder", "ae.ckpt"], "belongs to med"),
        (["med"], "med takes --autoencoder"),
        (["med", "--autoencoder", "absent.ckpt"], "absent.ckpt"),
        (["med", "--slice-model", "slice.ckpt"], "--slice-model belongs to gem"),
        (["gem", "--norm-num-groups", 2], "gem takes --preset, --slice-model and --autoencoder"),
        (["gem", "--preset", "brats-128"], "for 'gem' choose one of gem-brats, gem-abdomen"),
        (["gem", "--vae", "absent.ckpt"], "absent.ckpt"),
        (["med-biflownet"], "There are no presets for 'med-biflownet'"),
        (["med-autoencoder", "--preset", "brats-128"], "`voxdiff convert med` makes a pipeline"),
        (["gem3d-stage1"], "`voxdiff convert gem` makes a pipeline"),
        (["fdm", "--preset", "brats-128"], "fdm takes --norm-num-groups and no other options"),
        (["fdm", "--autoencoder", "ae.ckpt"], "belongs to med and gem"),
        (["fdm"], "where the official network has 4 dimensions"),
    ],
)
def test_med_gem_and_the_others_take_different_options(arguments, reason, checkpoint, tmp_path):
    name, *options = arguments
    result = run(name, checkpoint, tmp_path / "out", *options)
    assert result.exit_code == 1 and reason in result.stderr and not (tmp_path / "out").exists()


def test_every_file_of_gem_is_handed_on(tmp_path, monkeypatch):
    received = []

    def convert_gem_checkpoints(*arguments, **options):
        received.append((*arguments, options))
        return tmp_path

    monkeypatch.setattr("voxdiff.hub.convert_gem_pipeline.convert_gem_checkpoints", convert_gem_checkpoints)
    stage2, slices, vae, out = (tmp_path / name for name in ("stage2.ckpt", "slices.ckpt", "kl-f8.ckpt", "out"))
    for options in ([], ["--slice-model", slices, "--vae", vae, "--preset", "gem-abdomen"]):
        result = run("gem", stage2, out, *options)
        assert result.exit_code == 0, result.output
    assert received == [
        (stage2, out, {"slice_path": None, "vae_path": None, "preset": "gem-brats"}),
        (stage2, out, {"slice_path": slices, "vae_path": vae, "preset": "gem-abdomen"}),
    ]


def test_a_network_of_slices_becomes_a_folder(tmp_path):
    checkpoint, out = tmp_path / "ema_0.9999_200000.pt", tmp_path / "out"
    torch.save({"state_dict": load_golden("cdpm_unet")[1], "step": 200_000}, checkpoint)
    result = run("fdm", checkpoint, out)
    assert result.exit_code == 0, result.output
    assert isinstance(voxdiff.Pipeline.from_pretrained(out), voxdiff.SliceConditionedPipeline)


def test_help_names_the_presets():
    result = run("--help")
    assert result.exit_code == 0
    for word in ("checkpoint", "out", "lidc-128", "cwdm-t2f", "gem-abdomen", "--slice-model"):
        assert word in result.output.lower()
