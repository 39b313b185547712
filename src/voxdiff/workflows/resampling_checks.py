"""What the data set tools look at before their first volume, so that a long run does not find it out at its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from diffusers.utils import logging

from voxdiff.metrics.nnunet import check_export
from voxdiff.pipelines.informed_slice_requests import find_start, read_informed_slices, read_masks
from voxdiff.workflows.enhancement_plan import PlannedVolume
from voxdiff.workflows.nnunet_dataset import NnUNetDataset

logger = logging.get_logger(__name__)


def check_run(
    pipe: Any,
    planned: Sequence[PlannedVolume],
    *,
    informed_slice: Callable[[PlannedVolume], Any],
    call_arguments: Mapping[str, Any],
    nnunet: NnUNetDataset | None,
) -> None:
    """Read every mask and the first informed slice; warn of labels that the model knows and no mask has.

    Raises:
        FileNotFoundError: If a volume is missing.
        ValueError: If a mask, the number of steps, the start, the first informed slice or the nnU-Net export cannot be
            used.
    """
    pipe.check_common_inputs(
        batch_size=1,
        num_inference_steps=call_arguments["num_inference_steps"],
        generator=None,
        output_type="nifti",
        callback_on_step_end_tensor_inputs=(),
    )
    found: set[int] = set()
    for place, item in enumerate({item.case.name: item for item in planned}.values()):
        mask = item.case.load_mask()
        try:
            requests = read_masks(mask, pipe.volume_processor, pipe.mask_encoder)
            rule = pipe.config["position_rule"]
            start = find_start(call_arguments["start_position"], requests[0].depth, rule)
            if place == 0:
                values = {name: call_arguments.get(name) for name in ("unit", "background")}
                read_informed_slices(
                    informed_slice(item), requests, pipe.volume_processor, start=start, rule=rule, **values
                )
        except ValueError as error:
            raise ValueError(f"{item.name}: {error}") from error
        found |= set(np.unique(np.asarray(mask.dataobj)).tolist())
    if absent := sorted(set(pipe.mask_encoder.values) - found):
        logger.warning(
            f"No mask has the label {', '.join(map(str, absent))}, which the model was trained with; add what it stands for "
            "if it belongs to every subject, such as the brain around a tumour (tissue maps)."
        )
    if nnunet is not None:
        check_export(nnunet.folder, **nnunet.description(), values=found - set(nnunet.to_background))
