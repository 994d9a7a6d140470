"""How commands show their options, and how they say that these were not used as they are meant."""

from __future__ import annotations

from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

# What all errors of the parser derive from. It is part of typer in some versions and of click in others.
UsageError: type[Exception] = next(kind for kind in BadParameter.__mro__ if kind.__name__ == "ClickException")


class GroupedCommand(TyperCommand):
    """A command whose help has options under the headings of their panels, in columns that no terminal is too
    narrow for: typer's boxes cut names off.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, those that stand under no heading first."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                found.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for heading in sorted(found, key=["Arguments", "Options"].__contains__, reverse=True):
            with formatter.section(heading):
                formatter.write_dl(found[heading])

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first paragraph of the help, whole, for the list of commands."""
        return " ".join((self.help or "").partition("\n\n")[0].split())


def usage_sentence(error: Any) -> str:
    """What a :data:`UsageError` says, in one sentence, with what was given and where to read on."""
    text = str(error.format_message()).rstrip(".")
    cause = error.__cause__
    if hasattr(cause, "errors"):  # pydantic says what it expected, and not what came
        text = text.replace("Input should be", "should be").replace("Value error, ", "")
        text = text.partition(", unable to parse")[0]
        given = repr(cause.errors()[0]["input"])
        if given not in text:
            text += f", got {given}"
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    return f"{text} (see {command} --help)" if command else text
