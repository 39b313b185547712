import json
import os
import subprocess
import sys

import pytest
import torch
from autoencoder_runs import assert_same_run, make_objective, make_trainer, make_untrained, run_record
from safetensors.torch import load_file

from voxdiff.training.log import read_log


class Killed(BaseException):
    pass


def train_and_kill(folder, step, **arguments):
    """A run that is killed between the model's and the adversary's part of a step."""
    trainer = make_trainer(folder, **arguments)
    play = trainer.objective.adversary_loss

    def killed(adversary):
        if trainer.lr_scheduler.last_epoch == step:
            raise Killed
        return play(adversary)

    trainer.objective.adversary_loss = killed
    with pytest.raises(Killed):
        trainer.train()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler": "cosine", "lr_warmup_steps": 3, "logging_steps": 3},
        {"gradient_accumulation_steps": 2, "train_batch_size": 1, "mixed_precision": "bf16"},
    ],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, settings):
    make_trainer(tmp_path / "whole", **settings).train()
    train_and_kill(tmp_path / "killed", 3, **settings)  # in the fourth step, after checkpoint 2
    torch.manual_seed(1234)
    make_trainer(tmp_path / "killed", resume_from_checkpoint="latest", **settings).train()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_checkpoint_holds_both(tmp_path):
    make_trainer(tmp_path).train()
    parts = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    own = {"model", "adversary", "training_state.json", "optimizer.bin", "optimizer_1.bin"}
    assert parts == own | {"custom_checkpoint_0.pkl", "random_states_0.pkl"}
    assert {"config.json", "diffusion_pytorch_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert type(make_untrained()).from_pretrained(tmp_path).config["patch_size"] == 8


def test_it_starts_at_its_step_and_learns_at_the_model_s_rate(tmp_path):
    vae = make_untrained()
    objective = make_objective(vae, adversarial_start=2)
    start = {name: tensor.clone() for name, tensor in objective.adversary.state_dict().items()}
    trainer = make_trainer(tmp_path, vae=vae, objective=objective, checkpointing_steps=1, lr_warmup_steps=8)
    trainer.train()
    saved = [load_file(path) for path in sorted(tmp_path.glob("checkpoint-*/adversary/*.safetensors"))]
    assert all(torch.equal(start[name], tensor) for name, tensor in saved[0].items())  # of checkpoint 2
    assert not torch.equal(start["blocks.0.conv.weight"], saved[1]["blocks.0.conv.weight"])
    log = read_log(tmp_path / "training_log.jsonl")
    assert [record["discriminator"] > 0 for record in log] == [False, False, True, True]
    assert trainer.adversary.optimizer.param_groups[0]["lr"] == pytest.approx(log[2]["learning_rate"])


def test_a_resumed_run_uses_its_own_optimiser_settings(tmp_path):
    make_trainer(tmp_path, max_train_steps=2).train()
    make_trainer(tmp_path, resume_from_checkpoint="latest", adam_beta1=0.5, learning_rate=1e-4).train()
    group = torch.load(tmp_path / "checkpoint-4" / "optimizer_1.bin", weights_only=True)["param_groups"][0]
    assert (group["betas"][0], group["lr"]) == (0.5, 1e-4)


def test_a_run_without_it_is_another_run(tmp_path):
    make_trainer(tmp_path, max_train_steps=2).train()
    vae = make_untrained()
    with pytest.raises(ValueError, match=r"adversary .*, this run has None"):
        objective = make_objective(vae, adversary=None)
        make_trainer(tmp_path, vae=vae, objective=objective, resume_from_checkpoint="latest").train()


def test_micro_batches_are_the_batch_but_for_batch_norm_and_codebook(tmp_path):
    def train(folder, **split):
        vae = make_untrained()
        vae.freeze_encoder()
        objective = make_objective(vae)
        for block in objective.adversary.blocks:
            block.norm = None
        make_trainer(folder, vae=vae, objective=objective, adam_epsilon=1e-3, max_train_steps=1, **split).train()
        return run_record(folder, "checkpoint-1")

    whole = train(tmp_path / "whole")
    split = train(tmp_path / "split", train_batch_size=1, gradient_accumulation_steps=2)
    for name in ("model.decoder.conv_in.weight", "adversary.blocks.0.conv.weight", "optimizer_1.bin.0.exp_avg"):
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=1e-6)


def test_a_layer_that_fails_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.adversary.network.blocks[1].conv.bias[0] = float("nan")
    trainer.objective._judge = lambda adversary, fake, real: [fake.new_zeros(())] * 2
    with pytest.raises(
        FloatingPointError, match=r"in the adversary, the output of layer 'blocks\.1\.conv' is not finite"
    ):
        trainer.train()


@pytest.mark.slow
def test_it_goes_on_in_processes_with_other_hash_seeds(tmp_path):
    """Sets, and with them diffusers' own configuration keys, have another order in each process."""
    code = "import sys, autoencoder_runs as runs; runs.make_trainer(sys.argv[1], max_train_steps=int(sys.argv[2]), "
    code += "resume_from_checkpoint='latest').train()"
    for seed, steps in (("1", 4), ("2", 6)):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, str(tmp_path), str(steps)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
    make_trainer(tmp_path / "whole", max_train_steps=6).train()
    assert_same_run(tmp_path / "whole", tmp_path, checkpoint="checkpoint-6")


def test_what_diffusers_notes_in_a_configuration_does_not_count(tmp_path):
    make_trainer(tmp_path).train()
    state = json.loads((tmp_path / "checkpoint-4" / "training_state.json").read_text())
    assert state["adversary"]["base_channels"] == 2
    assert not [key for part in (state, state["adversary"]) for key in part if key.startswith("_")]
