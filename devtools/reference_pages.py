"""Write the pages of the documentation that are made from the code: parameters and commands.

python -m devtools.reference_pages     # into docs/reference/, where git ignores them; `make docs` does it
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
# Width of the help texts, in characters, whatever terminal builds the site.
_COLUMNS = "100"
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?")
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def parameters_page() -> str:
    """Return the page of all parameters as Markdown: one table for each section of params.yaml."""
    comments = _comments((_ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections: dict[str, list[str]] = {}
    for name, schema in parameters():
        section = name.partition(".")[0] if "." in name else ""
        text = comments.get(name, "").replace("|", "\\|")
        row = f"| `{name}` | {_type(schema)} | `{_yaml(schema.get('default'))}` | {text} |"
        sections.setdefault(section, []).append(row)
    parts = [
        "# Parameters\n\nWhat `params.yaml` and recipes can set. This page is made from the code and from the "
        "comments of `params.yaml`. An unknown name, a wrong type or a value out of range is an error that lists all "
        "mistakes."
    ]
    for section, rows in sections.items():
        title = f"## {section}" if section else "## For everything"
        lead = f"\n\n{comments[section][0].upper()}{comments[section][1:]}." if comments.get(section) else ""
        table = "| parameter | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
        parts.append(f"{title}{lead}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def parameters() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the dotted name of each parameter and its JSON schema, with its default."""
    from amlp.params import Params

    schema = Params.model_json_schema(by_alias=True)
    yield from _leaves(schema, schema["$defs"], "", Params().model_dump(by_alias=True, mode="json"))


def _leaves(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str, values: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, field in schema["properties"].items():
        target = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        if "properties" in target:
            yield from _leaves(target, definitions, f"{prefix}{key}.", values[key])
        else:
            yield f"{prefix}{key}", target | {"default": values[key]}


def _comments(text: str) -> dict[str, str]:
    """Return the comment at the end of each line of a YAML file, by the dotted name of its key."""
    comments, path = {}, list[tuple[int, str]]()
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            depth = len(match["indent"])
            path = [(other, key) for other, key in path if other < depth] + [(depth, match["key"])]
            comments[".".join(key for _, key in path)] = match["comment"] or ""
    return comments


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{_yaml(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{_yaml(schema['const'])}`"
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([schema.get("type", "any"), *bounds])


def _yaml(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def commands_page() -> str:
    """Return the help texts of `amlp` and `amlp-pipelines` and of their commands, as Markdown."""
    os.environ["COLUMNS"] = _COLUMNS
    from amlp.cli import build_parser
    from pipelines.__main__ import build_parser as build_pipelines_parser

    parts = ["# Commands\n\nThe help texts of the programs, as `--help` prints them."]
    for parser in (build_parser(), build_pipelines_parser()):
        parts.append(f"## {parser.prog}\n\n{_help(parser)}")
        parts += [f"### {command.prog}\n\n{_help(command)}" for command in _commands(parser)]
    return "\n\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser) -> str:
    return f"```text\n{parser.format_help().rstrip()}\n```"


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    # argparse has no public way to its subcommands.
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(commands.choices.values())


def main() -> None:
    from amlp.files import write_text

    for name, text in (("parameters", parameters_page()), ("commands", commands_page())):
        write_text(_ROOT / f"docs/reference/{name}.md", text)


if __name__ == "__main__":
    main()
