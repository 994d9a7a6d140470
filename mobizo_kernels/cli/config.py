"""Options in a YAML file: what `--config` reads, and what a run leaves behind so that it can be repeated."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import CallbackParam, Context

from mobizo_kernels.errors import InputError, first_line

if TYPE_CHECKING:
    import yaml

_AS_JSON = ("verbalizer",)  # what flags take as JSON, and a file also as names and texts
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
        found = yaml.load(path.read_text(encoding="utf-8-sig"), _loader())
    except (OSError, ValueError) as error:
        raise InputError(f"config: {str(path)!r} cannot be read ({first_line(error)})") from error
    except yaml.YAMLError as error:
        raise InputError(f"config: {path} is no YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"config: {path} has too many levels") from error
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
        if value is not None:
            values[name] = _flag(path, name, value)
    return values


def _flag(path: Path, name: str, value: object) -> str:
    """A value of the file `path` as the command line would have it."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InputError(f"config: expected one value for {name!r} in {path}, got a {type(value).__name__}")
    if name not in _AS_JSON:
        raise InputError(f"config: expected one value for {name!r} in {path}, got names and values")
    if not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise InputError(f"config: expected a text for each name in {name!r} in {path}")
    return json.dumps(value)


@cache
def _loader() -> type[yaml.SafeLoader]:
    """A reader of YAML that leaves values as they are written, since it is the option that knows of what type
    they are ("no" may be the word of a label), and takes no name twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            names = [name for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
            seen = set()
            for name in names:
                if name.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{name.value!r} is there twice", problem_mark=name.start_mark
                    )
                seen.add(name.value)
            return node

    for kind in ("bool", "float", "int", "timestamp"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", yaml.SafeLoader.construct_scalar)
    return Loader


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
