"""Reference pages made from the JSON schemas and from the commands themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Undescribed(Exception):
    """A key of a schema, a command or an option has no description."""


def spec_keys() -> str:
    """Every key of a spec, from ``chain.schema.json``."""
    schema = _schema("chain")
    defs = schema["$defs"]
    shared = schema["properties"]["defaults"]["properties"]
    return "\n".join(
        [
            "## Top level\n",
            _table(schema["properties"], schema, schema),
            "## Domain: `[domains.NAME]` {#domain}\n",
            f"{_description(defs['domain'], 'domain')}\n",
            _table(_without(defs["domain"]["properties"], shared), defs["domain"], schema),
            "## Disk: `[domains.NAME.disks.TARGET]` {#disk}\n",
            f"{_description(defs['disk'], 'disk')}\n",
            _table(_without(defs["disk"]["properties"], shared), defs["disk"], schema),
            "## Image: an entry of `chain` {#image}\n",
            f"{_description(defs['entry'], 'entry')}\n",
            _table(defs["entry"]["properties"], defs["entry"], schema),
            "## Keys of `[defaults]`, domains and disks {#defaults}\n",
            f"{_description(schema['properties']['defaults'], 'defaults')}\n",
            _table(shared, {}, schema),
        ]
    )


def host_config() -> str:
    """Every key of the host's config, from ``config.schema.json``."""
    schema = _schema("config")
    return "\n".join(
        [
            _table(schema["properties"], schema, schema),
            *_inner(schema["properties"], schema, "## `[{}]` {{#{}}}\n"),
        ]
    )


def plan_json() -> str:
    """Every key of a plan in JSON, from ``plan.schema.json``."""
    schema = _schema("plan")
    parts = [_table(schema["properties"], schema, schema)]
    for name in ("domain", "disk", "step"):
        value = schema["$defs"][name]
        parts += [f"### {name.capitalize()}\n", _table(value["properties"], value, schema)]
        parts += _inner(value["properties"], schema, "### `{}` {{#{}}}\n")
    return "\n".join(parts)


def _inner(properties: Mapping[str, Any], schema: Mapping[str, Any], title: str) -> Iterator[str]:
    """A table for each key whose value is a table with keys of its own."""
    for key, value in properties.items():
        if "properties" in value:
            yield title.format(key, key)
            yield _table(value["properties"], value, schema)


def commands() -> str:
    """Every command with its usage, arguments and options."""
    import click

    with warnings.catch_warnings():  # typer uses what click 9 removes
        warnings.simplefilter("ignore", DeprecationWarning)
        import typer

        from reconciler.cli.main import app

    group = typer.main.get_command(app)
    context = click.Context(group, info_name="virt-chain", **group.context_settings)
    parts = ["## virt-chain\n", *_command(group, context)]
    for name, command in group.commands.items():
        if not command.hidden:
            inner = click.Context(command, info_name=name, parent=context)
            parts += [f"## virt-chain {name}\n", *_command(command, inner)]
    return "\n".join(parts)


def _command(command: Any, context: Any) -> Iterator[str]:
    if not command.help:
        raise Undescribed(f"{context.command_path} has no help text")
    yield f"{_text(command.help)}\n"
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {pieces}\n```\n"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.get_params(context) if one not in arguments]
    if arguments:
        yield "| argument | description |\n| --- | --- |"
        yield "".join(
            f"| `{_cell(_metavar(one, context))}` | {_help(one, context)} |\n" for one in arguments
        )
    if options:
        yield "| option | description |\n| --- | --- |"
        yield "".join(
            f"| {_flags(one, context)} | {_help(one, context)} |\n"
            for one in options
            if not getattr(one, "hidden", False)
        )
    if command.epilog:
        yield f"{_text(command.epilog)}\n"


def _flags(option: Any, context: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    names.sort(key=len)
    flags = ", ".join(f"`{name}`" for name in names)
    if option.is_flag or option.count:
        return flags
    return f"{flags} `{_cell(_metavar(option, context))}`"


def _metavar(parameter: Any, context: Any) -> str:
    try:
        return str(parameter.make_metavar(context))
    except TypeError:  # click below 8.2
        return str(parameter.make_metavar())


def _help(parameter: Any, context: Any) -> str:
    said = getattr(parameter, "help", None) or _declared_help(parameter, context.command)
    if not said:
        raise Undescribed(f"{context.command_path}: {parameter.name} has no help text")
    text = _cell(_text(said))
    default = parameter.get_default(context, call=False)
    if default not in (None, False, 0, (), []) and "efault" not in text:
        text = f"{text} Default: `{getattr(default, 'value', default)}`."
    if getattr(parameter, "envvar", None):
        text = f"{text} Environment: `{parameter.envvar}`."
    return text


def _declared_help(parameter: Any, command: Any) -> str | None:
    """Help as the code has it: click 8.4 and newer overwrite that of typer's arguments."""
    from typer.utils import get_params_from_function

    declared = get_params_from_function(getattr(command.callback, "__wrapped__", command.callback))
    info = declared.get(parameter.name)
    return getattr(info.default, "help", None) if info else None


def _table(
    properties: Mapping[str, Any], owner: Mapping[str, Any], schema: Mapping[str, Any]
) -> str:
    lines = ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    for key, value in properties.items():
        resolved = _resolved(value, schema)
        default = f"`{json.dumps(resolved['default'])}`" if "default" in resolved else ""
        if key in owner.get("required", ()):
            default = "required"
        cells = (f"`{key}`", _type(resolved, schema), default, _description(resolved, key))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    named = value.get("type", "")
    if named == "array":
        return f"array of {_type(_resolved(value['items'], schema), schema)}"
    types = [named] if isinstance(named, str) else named
    return " or ".join("table" if one == "object" else one for one in types)


def _resolved(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """*value* with what its ``$ref`` leads to; its own keys win."""
    if "$ref" not in value:
        return value
    name = value["$ref"].removeprefix("#/$defs/")
    return {**_resolved(schema["$defs"][name], schema), **value}


def _description(value: Mapping[str, Any], key: str) -> str:
    if not value.get("description"):
        raise Undescribed(f"{key} has no description in its schema")
    return str(value["description"])


def _without(
    properties: Mapping[str, Any], shared: Sequence[str] | Mapping[str, Any]
) -> dict[str, Any]:
    return {key: value for key, value in properties.items() if key not in shared}


def _text(help_text: str) -> str:
    """Help as Markdown; click's marks for paragraphs that keep their lines are left out."""
    return help_text.replace("\b\n", "").replace("\f", "").strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _schema(name: str) -> dict[str, Any]:
    text = (ROOT / "schemas" / f"{name}.schema.json").read_text()
    return dict(json.loads(text))


PARTS = {
    "spec-keys": spec_keys,
    "host-config": host_config,
    "plan-json": plan_json,
    "commands": commands,
}
"""What a page gets in place of ``<!-- generated: NAME -->``."""
