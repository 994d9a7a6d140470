"""Options in a YAML file: what `--config` reads, and what a run leaves behind so that it can be repeated."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from typer import CallbackParam, Context

from mobizo_kernels.errors import InputError, first_line

_NOT_REPEATED = ("out", "overwrite", "journal", "resume", "dry_run", "tensorboard")


def read_config(context: Context, parameter: CallbackParam, path: Path | None) -> Path | None:
    """Let the values in the file `path` stand for the defaults of the command's options.

    Raises:
        InputError: the file cannot be read, is not one of names and values, or has a name that is none of the
            command's options.
    """
    if path is not None and not context.resilient_parsing:
        names = {
            option.name: option for option in context.command.params if option.param_type_name == "option"
        }
        known = {name for name in names if name and name not in (parameter.name, "print_json", "help")}
        context.default_map = _values(path, known)
    return path


def _values(path: Path, known: set[str]) -> dict[str, Any]:
    """The values of a file as the command line would have them: as text, each under the name of a field."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config: {str(path)!r} cannot be read ({first_line(error)})") from error
    except yaml.YAMLError as error:
        raise InputError(f"config: {path} is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict | None):
        raise InputError(f"config: expected names and values in {path}, got {type(found).__name__}")
    values = {}
    for key, value in (found or {}).items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"config: {path} has {str(key)!r}, which is no option of this command{meant}")
        if name in values:
            raise InputError(f"config: {path} has {name!r} twice")
        if isinstance(value, list):
            raise InputError(f"config: expected one value for {key!r} in {path}, got a list")
        if value is not None:
            values[name] = json.dumps(value) if isinstance(value, dict) else str(value)
    return values


def written_config(settings: dict[str, Any]) -> str:
    """What `--config` reads, to repeat a run that had these settings, of :func:`as_json`: all but where it
    wrote to and whether it went on with a journal.
    """
    import yaml

    kept = {
        name: value for name, value in settings.items() if name not in _NOT_REPEATED and value is not None
    }
    return "# mobizo train --config THIS_FILE --out DIRECTORY\n" + yaml.safe_dump(
        kept, sort_keys=False, allow_unicode=True, width=100
    )
