"""Says what is wrong with a job, and what is allowed, in words that need no pydantic."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ValidationError

from producer.errors import InvalidJob

_FIELD_CHARACTERS_MAX: Final = 64


def refusal(error: ValidationError, form: type[BaseModel], sent: dict[str, Any]) -> InvalidJob:
    """Name the first bad field of `form` in what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    path, kind = tuple(str(part) for part in problem["loc"]), problem["type"]
    if kind == "string_unicode" and (name := _name_of_no_unicode(sent, path)) is not None:
        path, kind = (*path, name), "extra_forbidden"
    return InvalidJob(_field(path), _reason(_schema(form), path, kind, problem["msg"]))


def _name_of_no_unicode(sent: dict[str, Any], path: tuple[str, ...]) -> str | None:
    """Find the unknown name that pydantic does not tell: it says only which object has it."""
    found: Any = sent
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    names = found if isinstance(found, dict) else ()
    return next((n for n in names if any("\ud800" <= c <= "\udfff" for c in n)), None)


def _field(path: tuple[str, ...]) -> str:
    """The field's name; a client's own key may be long, or not even Unicode."""
    field = ".".join(path).encode("unicode_escape").decode() or "job"
    return field if len(field) <= _FIELD_CHARACTERS_MAX else field[:_FIELD_CHARACTERS_MAX] + "..."


def _printable(text: str) -> str:
    """Escape what a terminal, or PostgreSQL, does not take: pydantic quotes what was sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _reason(schema: dict[str, Any], path: tuple[str, ...], kind: str, message: str) -> str:
    message = _printable(message[0].lower() + message[1:])
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "unknown field; known: " + ", ".join(_properties(schema, path[:-1]))
        case "string_too_short" | "string_too_long":
            return f"must have {_limits(schema, path, 'minLength', 'maxLength')} characters"
        case "too_long":
            return f"must have {_limits(schema, path, 'minProperties', 'maxProperties')} entries"
        case "greater_than_equal" | "less_than_equal":
            return f"must be {_limits(schema, path, 'minimum', 'maximum')}"
        case "too_short":
            return "must not be empty"
        case "string_pattern_mismatch":
            return message.replace("string should match pattern", "must match", 1)
        case "value_error":
            return message.removeprefix("value error, ")
        case "string_unicode":
            return "must be valid Unicode, without lone surrogates"
        case _:
            return message


def _limits(schema: dict[str, Any], path: tuple[str, ...], low: str, high: str) -> str:
    """Both ends of a field's range, read from the schema so that they are stated once."""
    found = schema
    for part in path:
        if "additionalProperties" in found and isinstance(found["additionalProperties"], dict):
            # pydantic's path to a key is (..., key, "[key]"): the keys' own limits are the last.
            is_key = path[-1] == "[key]"
            found = found["propertyNames"] if is_key else found["additionalProperties"]
            break
        found = _choice(schema, _properties_of(schema, found).get(part, {}), high)
    if high not in found:
        return "within its limits"
    return f"{found.get(low, 0):,} to {found[high]:,}"


def _properties(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    found = schema
    for part in path:
        found = _choice(schema, _properties_of(schema, found).get(part, {}), "properties")
    return _properties_of(schema, found)


def _properties_of(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return dict(_followed(schema, part).get("properties", {}))


def _choice(schema: dict[str, Any], part: dict[str, Any], key: str) -> dict[str, Any]:
    """Of `X | null`, the X that has `key` or leads to fields."""
    choices = [_followed(schema, choice) for choice in part.get("anyOf", [part])]
    fits = [choice for choice in choices if key in choice or "properties" in choice]
    return fits[0] if fits else choices[0]


def _followed(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref", "")
    return dict(schema["$defs"][reference.rpartition("/")[2]]) if reference else part


def _schema(form: type[BaseModel]) -> dict[str, Any]:
    return form.model_json_schema()
