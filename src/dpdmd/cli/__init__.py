"""The command line: a file for each group of commands, and what all of them share.

Every command imports what it needs itself, so that `--help` waits for none of it.
"""

import os
import sys
from typing import Annotated

import typer

from dpdmd.cli import demo, images, runs, training

app = typer.Typer(
    name="dpdmd",
    help="Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (training, images, runs, demo):  # --help has them in this order
    app.add_typer(commands.app)

USER_ERROR = 2
STOPPED_ERROR = 1
DEBUG_VARIABLE = "DPDMD_DEBUG"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("dpdmd"))
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity."""
    from dpdmd.store.messages import show_messages

    show_messages()
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main() -> None:
    """Run the command line: what a user can mend is one line on stderr and exit code 2, without a traceback."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        # Their notices on optional packages that are missing would bury ours.
        os.environ.setdefault(name, "error")
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None or os.environ.get(DEBUG_VARIABLE):
            raise
        if code <= 128:
            print(f"error: {error}", file=sys.stderr)
        elif os.environ.get("RANK", "0") == "0":  # all processes stop together
            print(error, file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _exit_code(error: Exception) -> int | None:
    """2 for what the user gave, 1 for a run that cannot go on, 128 + signal; None for our own mistakes."""
    if isinstance(error, ValueError | FileNotFoundError):
        return USER_ERROR
    if isinstance(error, FloatingPointError | OSError):
        return STOPPED_ERROR
    return getattr(error, "exit_code", None)
