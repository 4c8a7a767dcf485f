"""Where programs print: plain text and tables to standard output, errors beside."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
