"""The one training loop: Accelerate, EMA, atomic checkpoints and exact resume for every method."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from voxdiff.small_convolutions import small_convolutions_in_float32
from voxdiff.training.adversary import AdversarialObjective, Adversary
from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.batches import GlobalBatchSampler, KeyedDataset, SampleNoise, collate
from voxdiff.training.checkpoints import (
    find_checkpoint,
    read_state,
    save_checkpoint,
    save_model,
    save_pipeline,
    store_as_folders,
)
from voxdiff.training.ema import ExponentialMovingAverage
from voxdiff.training.guard import first_nonfinite_layer
from voxdiff.training.log import TrainingLog
from voxdiff.training.validation import save_validation_volumes
from voxdiff.volumes import atomic_path

Objective = Callable[[nn.Module, dict[str, Any], SampleNoise], torch.Tensor]


class Trainer:
    """Trains one component of a pipeline, or a model on its own.

    Args:
        accelerator: From :func:`voxdiff.training.make_accelerator`.
        pipeline: The pipeline being trained, which at the end holds the averaged weights; or the model.
        component: Name of the trained component, such as ``"unet"``; None for a model on its own.
        objective: ``(model, batch, noise) -> loss``. It may have ``terms``, the parts of its last loss by name, which
            are logged beside it, and an ``adversary``, see :class:`voxdiff.training.adversary.Adversary`.
        dataset: Map-style data set of dicts. It may have ``buckets``, see
            :class:`voxdiff.training.batches.GlobalBatchSampler`.
        args: The run's arguments.
        run_config: Everything that was asked for, as plain values; saved as ``run.json`` and in each checkpoint.
        validation_inputs: Arguments of the pipeline's call at each validation, such as conditions.
        validate: ``(pipeline, folder, step)``, called at each validation instead of sampling the pipeline; ``pipeline``
            is the pipeline or the model, holding the weights to look at.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipeline: Any,
        component: str | None,
        objective: Objective,
        dataset: Dataset,
        args: TrainingArguments,
        run_config: dict[str, Any] | None = None,
        validation_inputs: Mapping[str, Any] | None = None,
        validate: Callable[[Any, Path, int], object] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.pipeline = pipeline.to(accelerator.device)
        self.component = component
        self.objective = objective
        self.dataset = dataset
        self.args = args
        self.run_config = run_config or asdict(args)
        self.validate = validate or partial(
            save_validation_volumes, args=args, accelerator=accelerator, inputs=validation_inputs
        )
        self.output_dir = Path(args.output_dir)

        network = getattr(pipeline, component) if component else self.pipeline
        if args.channels_last:
            network.to(memory_format=torch.channels_last_3d)
        if args.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        self.network = network.train()
        self.ema = ExponentialMovingAverage(network, args.ema_decay) if args.use_ema else None
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, **self._optimizer_settings)
        # Not prepared by Accelerate, which would advance it once a process instead of once a step.
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        accelerator.register_for_checkpointing(self.lr_scheduler)
        self.adversary = self._make_adversary()
        name = component or "model"
        averaged = {f"{name}_ema": self.ema.model} if self.ema else {}
        opponent = {"adversary": self.adversary.network} if self.adversary else {}
        store_as_folders(accelerator, {name: network, **averaged, **opponent})

    @property
    def global_batch_size(self) -> int:
        """Samples per optimiser step over all processes."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes

    def train(self) -> Any:
        """Run to ``max_train_steps``, save the pipeline (or model) to ``output_dir`` and return it.

        Raises:
            FloatingPointError: At the first non-finite loss or gradient, with the layer it came from.
            ValueError: If the checkpoint to resume from belongs to another run.
        """
        accelerator, args = self.accelerator, self.args
        step, losses = self._resume()
        log = self._open_log(step)
        loader = iter(self._loader(step))
        started, first = time.perf_counter(), step

        with small_convolutions_in_float32(*self._trained):
            while step < args.max_train_steps:
                losses.append(self._optimise(loader))
                step += 1
                if self.ema is not None:
                    self.ema.update(self.network, step)
                if step % args.logging_steps == 0 or step == args.max_train_steps:
                    self._log(log, step, losses, (time.perf_counter() - started) / (step - first))
                    losses = []
                if args.validation_steps and step % args.validation_steps == 0:
                    self._validate(step)
                if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
                    state = {"step": step, "losses": self._over_processes(losses).tolist(), **self._identity}
                    state["run"] = self.run_config
                    save_checkpoint(accelerator, self.output_dir, state, limit=args.checkpoints_total_limit)

        result = self._holding((self.network if self.ema is None else self.ema.model).eval())
        if accelerator.is_main_process:
            save = save_pipeline if self.component else save_model
            save(result, self.output_dir)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return result

    def _optimise(self, loader: Iterator[dict[str, Any]]) -> torch.Tensor:
        """One optimiser step; returns the loss and its terms, means over this process's micro-batches."""
        batches, losses = [], []
        opponent = [self.adversary.model] if self.adversary else []
        for _ in range(self.args.gradient_accumulation_steps):
            batches.append(next(loader))
            with self.accelerator.accumulate(self.model, *opponent):
                loss = self._loss(self.model, batches[-1])
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), self.args.max_grad_norm or math.inf
                    )
                    self._require_finite(norm, batches)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.adversary is not None:
                    self.adversary.optimise(self.lr_scheduler.get_last_lr()[0])
                if self.accelerator.sync_gradients:
                    self.lr_scheduler.step()
                losses.append(torch.stack([loss.detach(), *self._terms.values()]))
        return torch.stack(losses).mean(0)

    @property
    def _trained(self) -> list[nn.Module]:
        return [self.network, self.adversary.network] if self.adversary else [self.network]

    @property
    def _terms(self) -> dict[str, torch.Tensor]:
        return getattr(self.objective, "terms", {})

    def _make_adversary(self) -> Adversary | None:
        if getattr(self.objective, "adversary", None) is None:
            return None
        objective = cast(AdversarialObjective, self.objective)
        return Adversary(self.accelerator, objective, self.args, self._optimizer_settings)

    def _holding(self, network: nn.Module) -> Any:
        """The pipeline with a network in the place of the trained one, or the network itself."""
        if self.component is None:
            return network
        setattr(self.pipeline, self.component, network)
        return self.pipeline

    def _loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        device = self.accelerator.device
        batch = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        return self.objective(model, batch, SampleNoise(self.args.seed, batch))

    def _require_finite(self, norm: torch.Tensor, batches: list[dict[str, Any]]) -> None:
        """Gradients are averaged over the processes, so that every process stops at the same step."""
        scaler = self.accelerator.scaler
        # fp16 meets infinities on its way to a loss scale that fits, and skips such steps.
        if torch.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1):
            return
        found = (first_nonfinite_layer(self.network, partial(self._loss, self.network, batch)) for batch in batches)
        where = next(filter(None, found), "the norm of the gradients, though none of this process,")
        raise FloatingPointError(
            f"Training stopped at step {batches[0]['step'][0] + 1}: {where} is not finite; the checkpoints are "
            "untouched: resume the last one with a lower learning rate, or look for extreme values in the data."
        )

    def _loader(self, first_step: int) -> DataLoader:
        args, accelerator = self.args, self.accelerator
        sampler = GlobalBatchSampler(
            len(self.dataset),  # type: ignore[arg-type]
            global_batch_size=self.global_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=args.seed,
            first_step=first_step,
            last_step=args.max_train_steps,
            buckets=getattr(self.dataset, "buckets", None),
        )
        return DataLoader(
            KeyedDataset(self.dataset),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )

    def _open_log(self, step: int) -> TrainingLog | None:
        """Write what the run is and open its log and trackers; only the main process has a log."""
        if self.args.report_to != "none":
            config = {key: str(value) for key, value in self.run_config.items()}
            self.accelerator.init_trackers("voxdiff", config=config)
        if not self.accelerator.is_main_process:
            return None
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.output_dir / "run.json") as temporary:
            temporary.write_text(json.dumps(self.run_config, indent=2), encoding="utf-8")
        return TrainingLog(self.output_dir / "training_log.jsonl", first_step=step)

    def _log(self, log: TrainingLog | None, step: int, losses: list[torch.Tensor], seconds: float) -> None:
        means = [round(mean, 6) for mean in self._over_processes(losses).mean(0).tolist()]
        record = {
            "step": step,
            **dict(zip(["loss", *self._terms], means, strict=True)),
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "seconds_per_step": round(seconds, 3),
        }
        self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=step)
        if log is not None:
            log.write(record)
            print(f"step {step}: loss {record['loss']:.5f}, {seconds:.2f} s a step", flush=True)

    def _over_processes(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Losses and terms of steps, a row a step, averaged over the processes."""
        if not losses:
            return torch.zeros(0)
        return self.accelerator.reduce(torch.stack(losses), reduction="mean")

    def _validate(self, step: int) -> None:
        if self.accelerator.is_main_process:
            shown = self._holding(self.network.eval() if self.ema is None else self.ema.model)
            self.validate(shown, self.output_dir / "validation", step)
            self._holding(self.network.train())
        self.accelerator.wait_for_everyone()

    @property
    def _optimizer_settings(self) -> dict[str, Any]:
        args = self.args
        return {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "weight_decay": args.adam_weight_decay,
            "eps": args.adam_epsilon,
        }

    @property
    def _identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed."""
        scheduler = getattr(self.pipeline, "scheduler", None)
        identity = {
            **_settings_of(self.network),
            **_settings_of(self.pipeline),
            **({"prediction_type": scheduler.config.get("prediction_type")} if scheduler else {}),
            "adversary": _settings_of(self.adversary.network) if self.adversary else None,
            "trained_parameters": sum(weight.numel() for weight in self.network.parameters() if weight.requires_grad),
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "global_batch_size": self.global_batch_size,
            "seed": self.args.seed,
            "use_ema": self.args.use_ema,
        }
        return json.loads(json.dumps(identity))

    def _resume(self) -> tuple[int, list[torch.Tensor]]:
        """Load the checkpoint asked for; returns its step and the losses since the last line of the log."""
        checkpoint = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if checkpoint is None:
            return 0, []
        state = read_state(checkpoint)
        for name, value in self._identity.items():
            if state.get(name, value) != value:
                raise ValueError(
                    f"{checkpoint} was trained with {name} {state[name]}, this run has {value}; use the same settings, "
                    "or start a new run from its weights (--pretrained_model_name_or_path)."
                )
        self._tell_changes(state.get("run", {}).get("model", {}))
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.step = 0  # micro-batches since the last optimiser step
        self._apply_optimizer_settings()
        device = self.accelerator.device
        return state["step"], [torch.tensor(loss, device=device) for loss in state.get("losses", [])]

    def _tell_changes(self, before: dict[str, Any]) -> None:
        """Say which of the model's settings a resumed run has otherwise than until now, such as what its steps learn."""
        now = json.loads(json.dumps(self.run_config.get("model", {})))
        changes = [
            f"{name} {before[name]}, now {value}" for name, value in now.items() if before.get(name, value) != value
        ]
        if changes and self.accelerator.is_main_process:
            print(f"resumed with other settings: {'; '.join(changes)}", flush=True)

    def _apply_optimizer_settings(self) -> None:
        """A checkpoint brings its own learning rate and such; this run's arguments count."""
        self.lr_scheduler.base_lrs = [self.args.learning_rate]
        for group in self.optimizer.param_groups:
            group.update(self._optimizer_settings, initial_lr=self.args.learning_rate)
            group["lr"] *= self.lr_scheduler.lr_lambdas[0](self.lr_scheduler.last_epoch)
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _settings_of(part: Any) -> dict[str, Any]:
    """A configuration without diffusers' own keys, which saving and loading change."""
    return {key: value for key, value in part.config.items() if not key.startswith("_")}
