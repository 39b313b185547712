"""The card of a finished run; that and the Hub are also seen by the tests of the training scripts."""

import pytest
from training_runs import make_runner, read_json

import voxdiff
from voxdiff.workflows import publish_run as module

COHORT = ["--cohort", "mr", "--num_subjects", "2", "--resolution", "16", "--block_out_channels", "4,8"]
NETWORK = ["--layers_per_block", "1", "--norm_num_groups", "2", "--train_batch_size", "2"]


@pytest.fixture
def finished(monkeypatch, tmp_path):
    """Output folder of a finished run, its pipeline and its settings."""
    out = make_runner(monkeypatch, tmp_path, tmp_path / "cache")(*COHORT, *NETWORK)
    (out / "README.md").unlink()
    return out, voxdiff.Pipeline.from_pretrained(out), read_json(out / "run.json")


def test_the_card_tells_the_data_and_the_last_loss(finished):
    out, pipeline, run_config = finished
    module.publish_run(pipeline, run_config, data="2 volumes of nobody", global_batch_size=2)
    card = (out / "README.md").read_text()
    assert "2 volumes of nobody" in card
    (out / "training_log.jsonl").write_text('{"step": 9, "loss": 0.12345}\n')
    module.publish_run(pipeline, run_config, data="2 volumes of nobody", global_batch_size=2)
    assert "0.1234" in (out / "README.md").read_text() and "0.1234" not in card


def test_it_is_published_where_the_run_says_so(finished, monkeypatch):
    out, pipeline, run_config = finished
    sent = []
    monkeypatch.setattr(module, "publish_folder", lambda folder, repo, *, private: sent.append((folder, repo, private)))
    module.publish_run(pipeline, run_config, data="", global_batch_size=2)
    assert sent == []
    run_config["training"] |= {"push_to_hub": True, "hub_model_id": "org/name", "hub_private_repo": True}
    module.publish_run(pipeline, run_config, data="", global_batch_size=2)
    assert sent == [(out, "org/name", True)]
