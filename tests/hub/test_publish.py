import json
import os
import subprocess
import sys

import pytest
from fakehub import FakeHub

from voxdiff.hub.publish import publish_folder, require_access

HOME = ["README.md", "pipeline.py", "samples.png", "training_log.jsonl", "unet/config.json", "unet/w.safetensors"]
INDEX = {"_class_name": "P", "processor": {"size": [8, 8, 8]}, "scheduler": ["d", "S"], "unet": ["voxdiff", "U"]}
STAYS = [
    ".checkpoint-2.tmp/unet/w.safetensors",
    ".pipeline-x/model_index.json",
    "unet/.hidden",
    "a.safetensors",
    "autoencoder_report.png",
    "cache/a.safetensors",
    "checkpoint-2/unet/w.safetensors",
    "encoded/autoencoder_report.png",
    "encoded/manifest.json",
    "logs/events",
    "manifest.json",
    "run.json",
    "validation/step-000002/volume-0000.nii.gz",
]


def test_a_pipeline_is_published_and_the_rest_stays_at_home(tmp_path):
    for name in HOME + STAYS:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(f"{name} 1")
    (tmp_path / "out" / "model_index.json").write_text(json.dumps(INDEX))
    code = (
        "import sys; from voxdiff.hub.publish import publish_folder, require_access; print(require_access('org/name')); "
        "print(publish_folder(sys.argv[1], 'org/name', private=True, token='hf_y'))"
    )
    with FakeHub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", code, str(tmp_path / "out")]
        environment = {**os.environ, **settings, "HF_HOME": str(tmp_path / "home")}
        for _ in range(2):  # publishing again is a second commit
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            assert f"tester\n{hub.url}/org/name/commit/" in result.stdout
        commits = hub.repos[("models", "org/name")]
        assert sorted(commits[-1][1]) == sorted([".gitattributes", "model_index.json", *HOME])
        assert commits[-1][1]["README.md"] == b"README.md 1"


def test_what_is_no_pipeline_is_not_published(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        publish_folder(tmp_path, "org/name")


def test_a_stranger_is_told_how_to_log_in():
    with pytest.raises(OSError, match=r"The Hub does not know you .*HF_TOKEN"):
        require_access("org/name", token="hf_wrong")


def test_a_name_is_checked_before_the_work():
    with pytest.raises(ValueError, match="org/na me"):
        require_access("org/na me")
