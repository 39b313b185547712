"""`voxdiff profile`: what a call of a model costs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voxdiff.cli.console import one_sentence_errors
from voxdiff.cli.generate import load_pipeline, parse_conditions, refuse_mask_models


def profile(
    model: Annotated[
        str, typer.Argument(help="A shipped model, a pipeline folder, or a Hub repository (organisation/name).")
    ] = "wdm-brain-64",
    steps: Annotated[int, typer.Option(help="Solver steps a call.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Volumes a call.")] = 1,
    dtype: Annotated[str, typer.Option(help="Precision of the network: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++, unipc, deis, euler or heun; default: the model's own.")
    ] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help="Translation models: NAME=PATH of a condition volume; repeat for each.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls.")] = 3,
    warmup: Annotated[int, typer.Option(help="Calls before them, at least 1.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Measure seconds, peak memory, parameters and operations of a call."""
    console = Console(stderr=True)
    with one_sentence_errors(console):
        if json_file is not None and json_file.is_dir():
            raise ValueError(f"--json {json_file} is a folder; give a file.")
        pipe = load_pipeline(model, scheduler, device, dtype)
        refuse_mask_models(pipe)
        conditions = parse_conditions(condition or [])
        arguments: dict[str, Any] = {"batch_size": batch_size, "num_inference_steps": steps}
        if conditions:
            arguments["condition_volumes"] = conditions
        with console.status(f"Calling {escape(model)} {warmup + repeats} times"):
            report = _measure(pipe, repeats, warmup, arguments)
        if json_file is not None:
            _write(json_file, report)
    Console().print(_table(model, report))


def _measure(pipe: Any, repeats: int, warmup: int, arguments: dict[str, Any]) -> dict[str, Any]:
    from voxdiff.workflows.profile import profile_pipeline

    return profile_pipeline(pipe, repeats=repeats, warmup=warmup, **arguments).to_dict()


def _write(path: Path, report: dict[str, Any]) -> None:
    from voxdiff.volumes import atomic_path

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _table(model: str, report: dict[str, Any]) -> Table:
    arguments = report["arguments"]
    table = Table("", "", title=f"{escape(model)} ({report['pipeline']})", show_header=False)
    rows = {
        "call": f"{arguments['batch_size']} volume(s), {arguments['num_inference_steps']} steps",
        "device": f"{report['device']} ({report['device_name']}), {report['dtype']}, {report['threads']} CPU thread(s)",
        "seconds": f"{report['seconds_median']:.3g} (median of {report['repeats']}; "
        f"{report['seconds_min']:.3g} to {report['seconds_max']:.3g})",
        "peak memory": f"{report['peak_memory_mb']:.0f} MiB "
        + ("allocated" if report["device"].startswith("cuda") else "above what was resident before"),
        "weights": f"{report['weights_mb']:.1f} MiB",
        "operations": f"{report['flops'] / 1e9:.4g} GFLOP (1 multiply-add = 2)",
        **{f"parameters: {name}": f"{count:,}" for name, count in report["parameters"].items()},
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table
