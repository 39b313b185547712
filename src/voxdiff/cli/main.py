"""The `voxdiff` command."""

import typer

from voxdiff.cli.cohort import cohort
from voxdiff.cli.convert import convert
from voxdiff.cli.convert_extractor import convert_extractor
from voxdiff.cli.counterfactual import counterfactual
from voxdiff.cli.enhance import enhance
from voxdiff.cli.evaluate import compare, evaluate
from voxdiff.cli.generate import generate
from voxdiff.cli.harmonize import harmonize
from voxdiff.cli.interpolate import interpolate
from voxdiff.cli.nearest import nearest
from voxdiff.cli.nnunet import export_nnunet
from voxdiff.cli.profile import profile
from voxdiff.cli.utility import utility

app = typer.Typer(
    help="Diffusion pipelines for 3D medical image synthesis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(generate, cohort, evaluate, compare, nearest, utility, profile),
    *(enhance, harmonize, counterfactual),
    interpolate,
    *(convert, convert_extractor, export_nnunet),
):
    app.command()(command)
