"""The command line: one file per group of commands, and the entry point that they share.

Each command imports its dependencies when it runs, so that `--help` is fast.
"""

import inspect
import os
import sys
from errno import ELOOP, ENAMETOOLONG
from typing import Annotated

import typer

from dpdmd.cli import demo, images, runs, training
from dpdmd.cli.streams import lasting_streams, printable
from dpdmd.store.errors import StoppedBySignal, reason_of

app = typer.Typer(
    name="dpdmd",
    help="Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (training, images, runs, demo):  # the order in which --help lists them
    for command in commands.app.registered_commands:
        # The whole first sentence: without it, help would cut it off after 45 characters.
        command.short_help = (inspect.getdoc(command.callback) or "").partition("\n\n")[0]
    app.add_typer(commands.app)

USER_ERROR = 2
STOPPED_ERROR = 1
DEBUG_VARIABLE = "DPDMD_DEBUG"
INTERRUPTED = 130  # a shell's exit code after Ctrl-C
# Commands that go on where they were interrupted; `train` says so itself.
CONTINUED = ("sample", "evaluate", "audit", "compare", "demo")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("dpdmd"))
        raise typer.Exit


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only warnings and results, without progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print what is only of use when something is looked for.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a text-to-image diffusion or flow model into a few-step student that keeps its diversity."""
    if quiet and verbose:
        raise ValueError("--quiet and --verbose exclude each other; give only one of them")

    from dpdmd.store.messages import LEVEL_VARIABLE, QUIET, VERBOSE, show_messages

    if quiet or verbose:
        os.environ[LEVEL_VARIABLE] = QUIET if quiet else VERBOSE
    show_messages()
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main() -> None:
    """Run the command line.

    An error that the user can fix is printed in one line on stderr, without a traceback; see `_exit_code`. Any other is
    a bug of ours and keeps its traceback.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        # Their warnings about missing optional packages would hide our messages.
        os.environ.setdefault(name, "info" if "--verbose" in sys.argv else "error")
    with lasting_streams():
        try:
            app()
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            said = reason_of(error) if isinstance(error, OSError) and error.strerror else str(error)
            print(f"error: {printable(said)}", file=sys.stderr)
            sys.exit(_exit_code(error))
        except StoppedBySignal as stop:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            if os.environ.get("RANK", "0") == "0":  # a signal stops all processes; one message is enough
                print(stop, file=sys.stderr)
            sys.exit(stop.exit_code)
        except (KeyboardInterrupt, SystemExit) as ended:
            # typer makes an exit code of Ctrl-C, and says nothing.
            if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
                raise
            command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
            print(f"interrupted{'; the same command continues' if command in CONTINUED else ''}", file=sys.stderr)
            sys.exit(INTERRUPTED)


def _exit_code(error: Exception) -> int:
    """The exit code of an error: 2 for what the user can mend, 1 for a run that cannot continue."""
    if isinstance(error, ValueError | FileNotFoundError | IsADirectoryError | NotADirectoryError | FileExistsError):
        return USER_ERROR
    if isinstance(error, OSError) and error.errno in (ENAMETOOLONG, ELOOP):
        return USER_ERROR
    return STOPPED_ERROR
