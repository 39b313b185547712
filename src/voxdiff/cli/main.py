"""The `voxdiff` command."""

import typer

from voxdiff.cli.cohort import cohort
from voxdiff.cli.convert import convert
from voxdiff.cli.generate import generate

app = typer.Typer(
    help="Diffusion pipelines for 3D medical image synthesis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, cohort, convert):
    app.command()(command)
