"""The end of a training run: the card beside the trained pipeline, and both on the Hub if that was asked for."""

from pathlib import Path
from typing import Any

from voxdiff.hub.publish import publish_folder
from voxdiff.hub.training_card import training_card
from voxdiff.training.log import read_log
from voxdiff.volumes import atomic_path


def publish_run(pipeline: Any, run_config: dict[str, Any], *, data: str, global_batch_size: int) -> None:
    """Write the card of a trained pipeline, and publish its folder where the run's arguments say so.

    Args:
        pipeline: The trained pipeline, saved in the run's output folder.
        run_config: Contents of ``run.json``; its ``training`` entry names the folder and the repository.
        data: What the card says of the training data.
        global_batch_size: Samples of an optimiser step, over all processes.
    """
    args = run_config["training"]
    output_dir = Path(args["output_dir"])
    records = read_log(output_dir / "training_log.jsonl")
    loss = records[-1]["loss"] if records else None
    card = training_card(pipeline, run_config, data=data, global_batch_size=global_batch_size, final_loss=loss)
    with atomic_path(output_dir / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    if args["push_to_hub"]:
        print(publish_folder(output_dir, args["hub_model_id"], private=args["hub_private_repo"]))
