"""The reference of the command line, from the commands themselves."""

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from edgeqkv.cli import app

INTRODUCTION = """\
# Command line

This page is made from the program: it says what `edgeqkv COMMAND --help` says.

Results go to stdout, as text or with `--json` as JSON. Progress and messages go to stderr. `edgeqkv --debug COMMAND` shows the
traceback of an error; `edgeqkv --version` prints the version.

| exit code | meaning |
|---|---|
| 0 | The work is done. |
| 1 | A check failed: `verify` found a difference, or a device could not be measured. |
| 2 | The input was wrong. The message says what, where, and what to do. |
| 3 | The environment lacks something, for example a package. |
| 70 | edgeqkv itself failed. Please report it. |
| 130 | You interrupted it. |
"""


NAMES = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


@dataclass(frozen=True)
class Parameter:
    """One argument or option: ``kind`` is the type of a value, of which ``many`` may be given."""

    name: str
    info: ArgumentInfo | OptionInfo
    kind: Any
    many: bool
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def declared(self) -> str | None:
        """The name that the code gives it; typer keeps it as what a default was before Annotated."""
        words = [self.info.default, *(getattr(self.info, "param_decls", None) or ())]
        return next((word for word in words if isinstance(word, str) and word.startswith("--")), None)

    @property
    def flag(self) -> str:
        return self.declared or "--" + self.name.replace("_", "-")

    @property
    def value(self) -> str:
        if get_origin(self.kind) is Literal:
            return "|".join(map(str, get_args(self.kind)))
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            return "|".join(str(choice.value) for choice in self.kind)
        return NAMES.get(self.kind, "TEXT")

    @property
    def argument(self) -> str:
        name = self.name.upper() + ("..." if self.many else "")
        return name if self.required else f"[{name}]"

    @property
    def option(self) -> str:
        if self.kind is not bool:
            return f"{self.flag} {self.value}"
        return self.flag if self.declared else f"{self.flag} / --no-{self.flag.removeprefix('--')}"

    @property
    def default_text(self) -> str:
        if self.required:
            return "required"
        if self.kind is bool:
            on, _, off = self.option.partition(" / ")
            return f"`{on if self.default else off}`" if off else ""
        default = ", ".join(map(str, self.default)) if isinstance(self.default, list) else self.default
        text = "" if default is None else f"`{getattr(default, 'value', default)}`"
        return ", ".join(filter(None, [text, "may be repeated" if self.many else ""]))


def commands_page() -> str:
    commands = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    return "\n".join([INTRODUCTION, *(_command(name, function) for name, function in commands.items())])


def _command(name: str, function: Callable[..., Any]) -> str:
    parameters = _parameters(function)
    arguments = [p for p in parameters if isinstance(p.info, ArgumentInfo)]
    options = [p for p in parameters if isinstance(p.info, OptionInfo)]
    needed = [*(p.argument for p in arguments), *(p.option for p in options if p.required)]
    usage = " ".join(["edgeqkv", name, *needed, "[OPTIONS]" if options else ""]).rstrip()
    lines = [f"## {name}", "", _cell(function.__doc__), "", f"```text\n{usage}\n```", ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|", *(f"| `{p.argument}` | {_cell(p.info.help)} |" for p in arguments), ""]
    if options:
        rows = [f"| `{_cell(p.option)}` | {p.default_text} | {_cell(p.info.help)} |" for p in options]
        lines += ["| option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints[name]
        assert get_origin(annotation) is Annotated, name
        kind, info, *_ = get_args(annotation)
        if get_origin(kind) in (UnionType, Union):
            kind = next(each for each in get_args(kind) if each is not type(None))
        many = get_origin(kind) is list
        found.append(Parameter(name, info, get_args(kind)[0] if many else kind, many, parameter.default))
    return found


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
