"""What an adapter tells the suite about each class under test."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(kw_only=True)
class PipelineCase:
    """One pipeline class and the smallest way to run it."""

    name: str
    pipeline_class: type
    make_components: Callable[[], dict]  # freshly seeded
    make_inputs: Callable[[torch.Generator], dict]  # arguments of a call that returns a tensor
    output_shape: tuple[int, ...]  # of one sample
    required_params: frozenset[str] = frozenset()
    batch_params: frozenset[str] = frozenset()
    # Upstream's set less num_images_per_prompt, as in upstream's own tests of unconditional pipelines.
    optional_params: frozenset[str] = frozenset(
        {"num_inference_steps", "generator", "latents", "output_type", "return_dict"}
    )
    inapplicable: dict[str, str] = field(default_factory=dict)  # test name -> reason, beyond inapplicable.py


@dataclass(kw_only=True)
class ModelCase:
    """One network class and the smallest way to run it."""

    name: str
    model_class: type
    make_config: Callable[[], dict]
    make_inputs: Callable[..., dict]  # deterministic; takes the grid where `compiled_grids` is given
    output_shape: tuple[int, ...]  # of one sample
    checkpointed_classes: set[str]  # the classes that carry `gradient_checkpointing`
    compiled_grids: list[tuple[int, ...]] | None = None
    kind: str = ""  # "autoencoder" or "unet" adds the upstream mixin of that name
    inapplicable: dict[str, str] = field(default_factory=dict)
