"""How commands tell how far they are, and what went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def one_sentence_errors(console: Console) -> Iterator[None]:
    """Print what the input, a file or a missing package is at fault for in one sentence, and exit with status 1."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error


def progress_bar(console: Console) -> Progress:
    """A bar that counts, such as volumes, and goes when it is full."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
