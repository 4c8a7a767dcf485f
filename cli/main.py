"""The command `mcd`: each subcommand is loaded when it is asked for, so that help comes at once."""

import importlib
from typing import Annotated

import typer

_OWN_PACKAGES = ("cli", "model", "service", "training")

# The subcommands below pass all their words on to a program that has its own options and help.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

app = typer.Typer(
    name="mcd",
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Serve neural networks that say how sure they are: Monte Carlo dropout, for clothing or a network of yours.",
    epilog="mcd COMMAND --help shows the options of a command.",
)


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="IP address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port to listen on.")] = 3000,
) -> None:
    """Serve predictions over HTTP, until SIGTERM or Ctrl-C.

    http://HOST:PORT/ui is a page to try, /docs describes the routes, /readyz answers 200 when the model is loaded.
    Environment variables set the rest: MCD_MODEL is the folder of another model, MCD_WORKERS the number of processes.
    """
    from cli.server import serve_forever  # noqa: PLC0415 - help needs none of it

    serve_forever(host, port)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def predict(context: typer.Context) -> None:
    """Print predictions of image files, without a server."""
    _run(context, "cli.predict")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def bulk(context: typer.Context) -> None:
    """Score a folder, a pattern or a data set of images into Parquet files. Needs the extra `bulk`."""
    _run(context, "service.bulk.__main__", extra="bulk")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Fit the network to Fashion-MNIST and write an artifact to serve. Needs the extra `train`."""
    _run(context, "training.train", extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Measure an artifact on the test images, shifted images and other data sets. Needs the extra `train`."""
    _run(context, "training.evaluate", extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def adopt(context: typer.Context) -> None:
    """Compile and calibrate a network that somebody else trained, to serve it. Needs the extra `train`."""
    _run(context, "training.adopt.__main__", extra="train")


def _run(context: typer.Context, module: str, *, extra: str = "") -> None:
    """Run the program of a module with the words of this command.

    Args:
        context: of the subcommand; has the words that follow its name.
        module: has the program as `app`.
        extra: of this distribution, which installs what the module imports.

    Raises:
        Exit: a package of the extra is missing.
        SystemExit: the program ended.
    """
    try:
        program = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if not extra or str(error.name).partition(".")[0] in _OWN_PACKAGES:
            raise
        typer.echo(f"{context.command_path}: {error.name} is not installed: pip install 'mcd[{extra}]'", err=True)
        raise typer.Exit(1) from error
    program(args=context.args, prog_name=context.command_path)
