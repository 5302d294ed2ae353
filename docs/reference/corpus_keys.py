"""The tables of keys in docs/corpus.md, from the models that check a corpus file."""

from typing import Any

import yaml
from pydantic import BaseModel

from reference.markdown import escaped
from reference.markdown import table as markdown_table
from rlsparse_ray import entries

_WORDS = {
    "string": "text",
    "date": "date",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "object": "mapping of texts",
}


def table(name: str) -> str:
    """The keys of one model; a trajectory's without those that every pair has too."""
    model: type[BaseModel] = getattr(entries, name)
    schema = model.model_json_schema()
    shared = set(entries.PairEntry.model_fields) - {"name"} if name == "Trajectory" else set()
    required = set(schema.get("required", ()))
    keys = sorted(schema["properties"].keys() - shared, key=_order(schema, required))
    rows = [
        (
            f"`{key}`",
            _value(schema["properties"][key]),
            "must be given" if key in required else _default(schema["properties"][key]),
            escaped(" ".join((model.model_fields[key].description or "").split())),
        )
        for key in keys
    ]
    return markdown_table(("key", "value", "default", "meaning"), rows)


def _order(schema: dict[str, Any], required: set[str]) -> Any:
    """What must be there first, then as written."""
    place = {key: n for n, key in enumerate(schema["properties"])}
    return lambda key: (key not in required, place[key])


def _default(schema: dict[str, Any]) -> str:
    """What holds where the key is left out, as YAML; nothing where that is nothing."""
    value = schema.get("default")
    if value in (None, [], {}) or "$ref" in schema:
        return ""
    if type(value) is int and value and value % 2**20 == 0:
        return f"`{value >> 20}MiB`"
    return f"`{yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}`"


def _value(schema: dict[str, Any]) -> str:
    """What may be written, in words."""
    if "anyOf" in schema:
        return " or ".join(_value(s) for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        item = _value(schema["items"])
        return f"list of {item}" if item.startswith("`") else f"list of {item}s"
    return "mapping" if "$ref" in schema else _WORDS[schema.get("format", schema["type"])]
