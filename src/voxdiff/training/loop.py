"""The one training loop: Accelerate, EMA, atomic checkpoints and exact resume for every method."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.batches import GlobalBatchSampler, KeyedDataset, SampleNoise, collate
from voxdiff.training.checkpoints import find_checkpoint, read_state, replace_folder_contents, save_checkpoint
from voxdiff.training.ema import ExponentialMovingAverage
from voxdiff.training.guard import first_nonfinite_layer
from voxdiff.training.log import TrainingLog
from voxdiff.training.validation import save_validation_volumes

Objective = Callable[[nn.Module, dict[str, Any], SampleNoise], torch.Tensor]


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        ModuleNotFoundError: If the tracker is not installed.
    """
    if args.report_to == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--report_to tensorboard needs the tensorboard package: pip install voxdiff[train]."
            ) from error
    return Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
    )


class Trainer:
    """Trains one component of a pipeline.

    Args:
        accelerator: From :func:`make_accelerator`.
        pipeline: The pipeline being trained; at the end it holds the averaged weights.
        component: Name of the trained component, such as ``"unet"``.
        objective: ``(model, batch, noise) -> loss``.
        dataset: Map-style data set of dicts.
        args: The run's arguments.
        run_config: Everything that defines the run (plain values); saved in each checkpoint and compared on resume.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipeline: Any,
        component: str,
        objective: Objective,
        dataset: Dataset,
        args: TrainingArguments,
        run_config: dict[str, Any] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.pipeline = pipeline
        self.component = component
        self.objective = objective
        self.dataset = dataset
        self.args = args
        self.run_config = run_config or asdict(args)
        self.output_dir = Path(args.output_dir)

        network = getattr(pipeline, component).to(accelerator.device)
        if args.channels_last:
            network.to(memory_format=torch.channels_last_3d)
        if args.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        self.network = network.train()
        self.ema = ExponentialMovingAverage(network, args.ema_decay) if args.use_ema else None
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        # Not prepared by Accelerate, which would advance it once a process instead of once a step.
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        accelerator.register_for_checkpointing(self.lr_scheduler)
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    @property
    def global_batch_size(self) -> int:
        """Samples per optimiser step over all processes."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes

    def train(self) -> Any:
        """Run to ``max_train_steps``, save the pipeline to ``output_dir`` and return it.

        Raises:
            FloatingPointError: At the first non-finite loss or gradient, with the layer it came from.
        """
        accelerator, args = self.accelerator, self.args
        self.output_dir.mkdir(parents=True, exist_ok=True)
        step = self._resume()
        log = TrainingLog(self.output_dir / "training_log.jsonl", first_step=step) if accelerator.is_main_process else None
        if args.report_to != "none":
            accelerator.init_trackers("voxdiff", config={key: str(value) for key, value in self.run_config.items()})
        loader = iter(self._loader(step))
        losses, started, first = [], time.perf_counter(), step

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
                self._checkpoint(step)

        accelerator.end_training()
        return self._finish()

    def _optimise(self, loader) -> torch.Tensor:
        """One optimiser step; returns the mean loss over this process's micro-batches."""
        losses = []
        for _ in range(self.args.gradient_accumulation_steps):
            batch = self._to_device(next(loader))
            with self.accelerator.accumulate(self.model):
                loss = self.objective(self.model, batch, SampleNoise(self.args.seed, batch))
                self.accelerator.backward(loss)
                losses.append(loss.detach())
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                    self._check_finite(batch, losses[-1], norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.lr_scheduler.step()
                self.optimizer.zero_grad()
        return torch.stack(losses).mean()

    def _check_finite(self, batch: dict[str, Any], loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Gradients are averaged over the processes, so that every process stops at the same step."""
        if torch.isfinite(norm) or (self.args.mixed_precision == "fp16" and torch.isfinite(loss)):
            return
        layer = first_nonfinite_layer(
            self.network, lambda: self.objective(self.network, batch, SampleNoise(self.args.seed, batch))
        )
        raise FloatingPointError(
            f"Training stopped at step {batch['step'][0]}: {layer} is not finite (loss {float(loss):.4g}); the last "
            "checkpoint is untouched: resume it with a lower learning rate, or look for extreme values in the data."
        )

    def _loader(self, first_step: int) -> DataLoader:
        args, accelerator = self.args, self.accelerator
        sampler = GlobalBatchSampler(
            len(self.dataset),
            global_batch_size=self.global_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=args.seed,
            first_step=first_step,
            last_step=args.max_train_steps,
        )
        return DataLoader(
            KeyedDataset(self.dataset),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.accelerator.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def _log(self, log: TrainingLog | None, step: int, losses: list[torch.Tensor], seconds: float) -> None:
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        record = {
            "step": step,
            "loss": round(loss, 6),
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "seconds_per_step": round(seconds, 3),
        }
        self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=step)
        if log is not None:
            log.write(record)
            print(f"step {step}: loss {loss:.5f}, {seconds:.2f} s a step", flush=True)

    def _validate(self, step: int) -> None:
        if self.accelerator.is_main_process:
            trained = getattr(self.pipeline, self.component)
            setattr(self.pipeline, self.component, self.network.eval() if self.ema is None else self.ema.model)
            save_validation_volumes(self.pipeline, self.output_dir / "validation", step, self.args, self.accelerator)
            setattr(self.pipeline, self.component, trained)
            self.network.train()
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, step: int) -> None:
        state = {"step": step, "global_batch_size": self.global_batch_size, "run": self.run_config}
        save_checkpoint(self.accelerator, self.output_dir, state, limit=self.args.checkpoints_total_limit)

    def _resume(self) -> int:
        checkpoint = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if checkpoint is None:
            return 0
        state = read_state(checkpoint)
        if state["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"{checkpoint} was trained with a global batch of {state['global_batch_size']}, this run has "
                f"{self.global_batch_size}; choose batch size, accumulation and processes with the same product."
            )
        self.accelerator.load_state(str(checkpoint))
        return state["step"]

    def _save_weights(self, models: list[nn.Module], weights: list, output_dir: str) -> None:
        if self.accelerator.is_main_process:
            self.network.save_pretrained(Path(output_dir) / self.component)
            if self.ema is not None:
                self.ema.model.save_pretrained(Path(output_dir) / f"{self.component}_ema")
        weights.clear()

    def _load_weights(self, models: list[nn.Module], input_dir: str) -> None:
        folders = {self.component: self.network}
        if self.ema is not None:
            folders[f"{self.component}_ema"] = self.ema.model
        for name, module in folders.items():
            module.load_state_dict(type(self.network).from_pretrained(Path(input_dir) / name).state_dict())
        models.clear()

    def _finish(self) -> Any:
        trained = self.network if self.ema is None else self.ema.model
        setattr(self.pipeline, self.component, trained.eval())
        if self.accelerator.is_main_process:
            temporary = self.output_dir / ".pipeline.tmp"
            self.pipeline.save_pretrained(temporary)
            replace_folder_contents(temporary, self.output_dir)
        self.accelerator.wait_for_everyone()
        return self.pipeline
