"""From the fields of settings to the options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from typer import Context, Option

from mobizo_kernels.cli.config import read_config

Settings = TypeVar("Settings")
Json = Annotated[bool, Option("--json", help="Print one JSON object as the last line.")]
Config = Annotated[
    Path | None,
    Option(
        metavar="FILE.yaml",
        callback=read_config,
        is_eager=True,
        help="Read options from a file; those of the command line win.",
    ),
]


@dataclass(frozen=True)
class Told:
    """What a command is told beside its settings.

    Attributes:
        print_json: whether to print one JSON object.
        arguments: the command line behind the program's name.
    """

    print_json: bool
    arguments: Sequence[str] = ()


def takes(settings: type[Settings]) -> Callable[[Callable[[Settings, Told], None]], Callable[..., None]]:
    """Give `command(settings, told)` the signature for typer: fields of `settings`, --config and --json."""

    def decorate(command: Callable[[Settings, Told], None]) -> Callable[..., None]:
        def run(*, invocation: Context, print_json: bool, config: Path | None, **values: Any) -> None:
            command(settings(**values), Told(print_json, invocation.obj))

        hints = get_type_hints(settings, include_extras=True)
        ours: dict[str, Any] = {"invocation": Context, "config": Config, "print_json": Json}
        if both := hints.keys() & ours.keys():
            raise TypeError(f"{settings.__name__} must not have {sorted(both)}, which every command takes")
        hints |= ours
        declared = fields(settings)  # type: ignore[arg-type]  # one of the dataclasses
        defaults: dict[str, Any] = {
            "invocation": MISSING,
            **{field.name: field.default for field in declared},
        }
        defaults |= {"config": None, "print_json": False}
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=hints[name],
                default=inspect.Parameter.empty if default is MISSING else default,
            )
            for name, default in defaults.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = hints
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
