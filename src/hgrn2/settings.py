"""Settings are frozen dataclasses; here they become JSON, come back, take overrides, and refuse what does not fit."""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hgrn2.errors import UserError

T = TypeVar("T")


def refuse(condition: bool, message: str) -> None:
    """Raise `UserError(message)` when the condition holds."""
    if condition:
        raise UserError(message)


def check_literals(config: Any) -> None:
    """Every field annotated with a Literal must hold one of its values."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise UserError(f"{name} is {getattr(config, name)!r}; choose one of: {choices}")


def to_dict(config: Any) -> dict[str, Any]:
    """A settings value as plain JSON values."""
    return dataclasses.asdict(config)


def changed(config: Any) -> dict[str, Any]:
    """Those settings that differ from their defaults, as plain values; a new field with a default changes nothing."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default:
            found[field.name] = changed(value) if dataclasses.is_dataclass(value) else value
    return found


def from_dict(kind: type[T], values: Any, where: str = "config") -> T:
    """Build settings from plain values; unknown or missing fields and wrong types are `UserError`s that name them."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object, not {type(values).__name__}")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(fields))
    refuse(bool(unknown), f"{where} has unknown fields: {', '.join(unknown)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    refuse(bool(missing), f"{where} lacks {', '.join(missing)}")
    return kind(**{name: coerce(value, hints[name], f"{where}.{name}") for name, value in values.items()})


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A JSON value or command-line text as the annotated type; `UserError` where it does not fit."""
    origin = get_origin(hint)
    if origin is Literal:
        return value  # the dataclass itself checks the choice and lists the others
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return coerce(value, _arm(value, [arm for arm in get_args(hint) if arm is not types.NoneType]), where)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        refuse(not isinstance(items, (list, tuple)), f"{where} must be a list, not {value!r}")
        return tuple(coerce(item, get_args(hint)[0], where) for item in items)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if hint is bool:
        return _coerce_bool(value, where)
    if hint in (int, float):
        return _coerce_number(value, hint, where)
    refuse(hint is str and not isinstance(value, str), f"{where} must be text, not {value!r}")
    return value


def _arm(value: Any, arms: list[Any]) -> Any:
    """Which of several kinds of settings an object is: the one with the fewest fields that it has too much or lacks."""
    given = set(value) if isinstance(value, dict) else set()

    def misfit(arm: Any) -> int:
        return len({f.name for f in dataclasses.fields(arm)} ^ given) if dataclasses.is_dataclass(arm) else len(given)

    return min(arms, key=misfit)


def _coerce_bool(value: Any, where: str) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, not {value!r}")
    return value


def _coerce_number(value: Any, kind: type, where: str) -> int | float:
    noun = "a whole number" if kind is int else "a number"
    if isinstance(value, bool):
        raise UserError(f"{where} must be {noun}, not {value!r}")
    if kind is int and isinstance(value, int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} must be {noun}, not {value!r}") from None
    refuse(kind is int and not number.is_integer(), f"{where} must be {noun}, not {value!r}")
    return int(number) if kind is int else number


def with_overrides(config: T, assignments: tuple[str, ...]) -> T:
    """Apply `name.sub=value` texts to nested settings, as in `with_overrides(run, ("model.width=64",))`."""
    values = to_dict(config)
    for text in assignments:
        path, equals, value = text.partition("=")
        refuse(not equals, f"setting {text!r}: write it as name=value")
        keys = path.strip().split(".")
        place = values
        for depth, key in enumerate(keys):
            known = isinstance(place, dict) and key in place
            refuse(not known, f"there is no setting {'.'.join(keys[: depth + 1])}")
            if depth < len(keys) - 1:
                place = place[key]
        old = place[keys[-1]]
        if isinstance(old, dict):
            raise UserError(f"{path} is a group; set one of its fields: {', '.join(old)}")
        place[keys[-1]] = value.strip()
    return from_dict(type(config), values, "setting")
