import pytest
import typer
from typer.testing import CliRunner

from voxdiff.cli.cohort import cohort

app = typer.Typer()
app.command()(cohort)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_writes_a_cohort(tmp_path):
    out = tmp_path / "out"
    result = run(
        *(out, "--subjects", 2, "--size", 16, "--seed", 1, "--split", "test"),
        *("--contrasts", "t1, flair", "--lesions", "--template", "mni152"),
    )
    assert result.exit_code == 0, result.output
    assert "2 simulated subjects" in result.output
    assert {path.name for path in (out / "test").glob("*.nii.gz")} == {
        f"sim-2000000{seed}_{name}.nii.gz" for seed in (1, 2) for name in ("t1", "flair", "tissue", "lesion")
    }
    header, first, _ = (out / "test" / "metadata.csv").read_text().splitlines()
    assert header.startswith("t1_file_name,flair_file_name,tissue_file_name,lesion_file_name,subject_id,seed,split")
    assert "mni152" in first


def test_writes_ct(tmp_path):
    assert run(tmp_path / "out", "--subjects", 1, "--size", 16, "--modality", "ct").exit_code == 0
    assert (tmp_path / "out" / "train" / "sim-00000000_ct.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--subjects", 0), "number of subjects is 0; ask for at least 1"),
        (("--subjects", -3), "number of subjects is -3"),
        (("--size", 33), "size is 33; choose an even number"),
        (("--split", "dev"), "split is 'dev'; choose one of train, val, test"),
        (("--modality", "pet"), "modality is 'pet'; choose one of mr, ct"),
        (("--contrasts", "t1,pd"), "'pd' is not known; choose among t1, t1gd, t2, flair"),
        (("--contrasts", ","), "give a list"),
        (("--modality", "ct", "--lesions"), "drop one of the two"),
        (("--seed", 9_999_999), "leaves the split's range"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, arguments, message):
    result = run(tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
