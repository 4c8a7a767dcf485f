"""What the programs share: consoles, options, and how they end with an error.

Results go to standard output, errors to standard error.
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
error_console = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)

DataOption = Annotated[
    Path | None, typer.Option(help="Folder of Fashion-MNIST.", show_default="$MCD_DATA_DIR, or found")
]
ArtifactArgument = Annotated[
    Path | None, typer.Argument(help="Folder of the artifact.", show_default="the embedded one")
]


def exit_with_error(message: str, code: int = 1) -> NoReturn:
    """Print an error, and end the program."""
    error_console.print(f"error: {message}", style="bold red")
    sys.exit(code)
