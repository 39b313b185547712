import json

import torch
from export_pipeline import export
from informed_slice_pipelines import make_informed_pipeline
from safetensors.torch import load_file


def test_an_exported_pipeline_is_in_16_bit_and_does_not_tell_where_it_came_from(tmp_path):
    make_informed_pipeline().save_pretrained(tmp_path / "run")
    (tmp_path / "run/training_log.jsonl").write_text("{}\n")
    export(tmp_path / "run", tmp_path / "out")
    for config in (tmp_path / "out").rglob("*.json"):
        assert "_name_or_path" not in json.loads(config.read_text())
    weights = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert (tmp_path / "out/training_log.jsonl").exists()
