"""Consoles of the programs: results go to standard output, errors to standard error."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
error_console = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
