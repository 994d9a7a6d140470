"""Entry point of the command line."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from typer import Abort

from mobizo_kernels.cli.commands import app
from mobizo_kernels.cli.interrupts import ending_signals_interrupt, exit_code
from mobizo_kernels.cli.usage import UsageError, usage_sentence
from mobizo_kernels.errors import InputError, memory_exhausted


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Every failure that can be foreseen ends in one sentence on stderr.

    The exit code is then 2 for bad input, 130 for an interrupt from the keyboard, 143 for SIGTERM, 129 for
    SIGHUP, and 1 where the system refuses something, as a full disk behind stdout does; a reader of stdout
    that has gone is told nothing.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show is shown anyhow.
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            with ending_signals_interrupt():
                code = app(given, prog_name="mobizo", obj=given, standalone_mode=False)
            sys.exit(code or 0)  # that of help and versions; commands give none
        except SystemExit as end:
            if not end.code:
                _flush_output()
            raise
    except InputError as error:
        print(f"mobizo: {error}", file=sys.stderr)
        sys.exit(2)
    except UsageError as error:
        print(f"mobizo: {usage_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Abort) as error:  # before a command has begun, or behind its end
        sys.exit(exit_code(error))
    except (MemoryError, RuntimeError, ImportError) as error:
        if (sentence := memory_exhausted(error)) is None:
            raise
        print(f"mobizo: {sentence}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        _forget_output()
        if error.errno != errno.EPIPE:
            what = "the output" if error.filename is None else error.filename
            print(f"mobizo: {what} cannot be used ({error.strerror or error})", file=sys.stderr)
        sys.exit(1)


def _flush_output() -> None:
    """Raise OSError unless stdout has taken all that was printed."""
    if sys.stdout is None:  # closed before Python began
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.flush()


def _forget_output() -> None:
    """Let Python, as it ends, not try again to write what stdout has refused."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":  # python -m mobizo_kernels.cli.main, where the script is not on the path
    run()
