"""Settings are frozen dataclasses; here they become JSON, come back, take overrides, and refuse what does not fit."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, overload

from hgrn2.errors import UserError, did_you_mean

T = TypeVar("T")
K = TypeVar("K", bound=type)
LARGEST = 2**63 - 1  # of a whole number: what PyTorch can count


def refuse(condition: bool, message: str) -> None:
    """Raise `UserError(message)` when the condition holds."""
    if condition:
        raise UserError(message)


@overload
def settings(kind: K) -> K: ...
@overload
def settings(*, kw_only: bool = True) -> Callable[[K], K]: ...
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings(kind: Any = None, *, kw_only: bool = True) -> Any:
    """A class of settings: a frozen dataclass whose values are held to their annotations whenever one is made.

    `check` comes before the class's own `__post_init__`, which may therefore compare numbers without thinking of NaN.
    """
    if kind is None:
        return functools.partial(settings, kw_only=kw_only)
    own = getattr(kind, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        check(self)
        if own is not None:
            own(self)

    kind.__post_init__ = __post_init__
    return dataclasses.dataclass(frozen=True, kw_only=kw_only)(kind)


def check(config: Any, named: Callable[[str], str] = str) -> None:
    """Hold every field of a dataclass to its annotation, and bring it to that type (4.0 to 4, a list to a tuple).

    Numbers must be finite and whole ones fit into 64 bits, a truth value is no number, a number is no text, and what is
    annotated with a Literal is one of its values. `named` makes of a field's name what messages call it.

    Raises:
        UserError: names the field, what it holds and what it may hold.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        fitting = coerce(value, hint, named(name), text=False)
        if fitting is not value:
            object.__setattr__(config, name, fitting)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The annotations of the fields; looking them up is slow."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]


def to_dict(config: Any) -> dict[str, Any]:
    """A settings value as plain JSON values; inner settings of a class that has a `tag` say it, as their `kind`."""
    return _with_tags(config, _plain(config))


def _plain(config: Any) -> dict[str, Any]:
    """Without tags: every name is one of a setting."""
    return dataclasses.asdict(config)


def _with_tags(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of `config`, or of settings of the same classes, with the tags of those that have one."""
    found = dict(values)
    for field in dataclasses.fields(config):
        inner = getattr(config, field.name)
        if dataclasses.is_dataclass(inner) and isinstance(values[field.name], dict):
            tag = getattr(inner, "tag", None)
            found[field.name] = ({} if tag is None else {"kind": tag}) | _with_tags(inner, values[field.name])
    return found


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
    """Build settings from plain values; unknown or missing fields and wrong types are `UserError`s that name them.

    A class may name fields that it once had, `retired: ClassVar[dict[str, Any]]`, with the value that is now the only
    one: files written before have them, and one that holds something else is refused.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object, not {type(values).__name__}")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values = _current(kind, values, where)
    unknown = sorted(map(str, set(values) - set(fields)))
    if unknown:
        raise UserError(f"{where} has unknown fields: {', '.join(unknown)}{did_you_mean(unknown[0], fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    refuse(bool(missing), f"{where} lacks {', '.join(missing)}")
    inside = f"{where}." if where else ""
    return kind(**{name: coerce(value, hints[name], inside + name) for name, value in values.items()})


def _current(kind: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Without the tag of its class and what older versions wrote beside the fields."""
    tag, retired = getattr(kind, "tag", None), getattr(kind, "retired", {})
    if tag is not None and "kind" in values:
        other = values["kind"] != tag
        refuse(other, f"{where}.kind is {shown(values['kind'])}; these settings are of kind {tag}")
    for name in retired.keys() & values.keys():
        gone = values[name] != retired[name]
        refuse(gone, f"{where}.{name} is {shown(values[name])}, which hgrn2 no longer does")
    drop = {*retired, *(() if tag is None else ("kind",))}
    return {name: value for name, value in values.items() if name not in drop} if drop else values


def coerce(value: Any, hint: Any, where: str, *, text: bool = True) -> Any:
    """A value as the annotated type; `UserError` where it does not fit. Types that settings do not have pass.

    Args:
        value: of a JSON file, of the command line, or of a Python caller.
        hint: the annotation.
        where: what messages call it.
        text: numbers, truth values, lists and None may be written as text, and objects as dicts. False: a Python
            caller's value, which must be what it is.
    """
    origin = get_origin(hint)
    if origin is Literal:
        return _coerce_choice(value, get_args(hint), where, text)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, get_args(hint), where, text)
    if origin is tuple and get_args(hint)[1:] == (...,):
        items = value.split(",") if text and isinstance(value, str) else value
        refuse(not isinstance(items, (list, tuple)), f"{where} must be a list, not {shown(value)}")
        fitting = tuple(coerce(item, get_args(hint)[0], where, text=text) for item in items)
        return value if type(value) is tuple and all(map(_same, fitting, value)) else fitting
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        refuse(not text, f"{where} must be a {hint.__name__}, not {shown(value)}")
        return from_dict(hint, value, where)
    if hint is bool:
        return _coerce_bool(value, where, text)
    if hint in (int, float):
        return _coerce_number(value, hint, where, text)
    refuse(hint is str and not isinstance(value, str), f"{where} must be text, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, in one line of at most 60 characters."""
    try:
        found = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    found = " ".join(found.split())
    return found if len(found) <= 60 else f"{found[:57]}..."


def _same(fitting: Any, value: Any) -> bool:
    return fitting is value


def _coerce_choice(value: Any, choices: tuple[Any, ...], where: str, text: bool) -> Any:
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if text and isinstance(value, str) and value == str(choice):
            return choice
    listed = ", ".join(map(str, choices))
    raise UserError(f"{where} is {shown(value)}; choose one of: {listed}{did_you_mean(value, choices)}")


def _coerce_union(value: Any, arms: tuple[Any, ...], where: str, text: bool) -> Any:
    if types.NoneType in arms and (value is None or (text and isinstance(value, str) and value.lower() == "none")):
        return None
    arms = tuple(arm for arm in arms if arm is not types.NoneType)
    if len(arms) == 1 or isinstance(value, arms):
        return coerce(value, arms[0], where, text=text) if len(arms) == 1 else value
    if not (text and isinstance(value, dict)):
        raise UserError(f"{where} must be an object, not {shown(value)}")
    return from_dict(_tagged(value, arms, where), value, where)


def _tagged(values: dict[str, Any], arms: tuple[Any, ...], where: str) -> Any:
    """The class of settings that an object says it is of; each of them has a `tag`.

    Before there were tags an object did not say so: it is then of the first class that has all of its fields named in
    the class's `untagged`.
    """
    tags = {arm.tag: arm for arm in arms}
    if "kind" in values:
        return tags[_coerce_choice(values["kind"], tuple(tags), f"{where}.kind", True)]
    found = [arm for arm in arms if values.keys() >= set(arm.untagged)]
    refuse(not found, f"{where} lacks kind: one of {', '.join(tags)}")
    return found[0]


def _coerce_bool(value: Any, where: str, text: bool) -> bool:
    if text and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, not {shown(value)}")
    return value


def _coerce_number(value: Any, kind: type, where: str, text: bool) -> int | float:
    if type(value) is kind is float and math.isfinite(value):
        return value
    if type(value) is kind is int and -LARGEST <= value <= LARGEST:
        return value
    wanted = "a whole number" if kind is int else "a number"
    given = isinstance(value, (numbers.Real, str) if text else numbers.Real) and not isinstance(value, bool)
    refuse(not given, f"{where} must be {wanted}, not {shown(value)}")
    return _whole(value, where) if kind is int else _finite(value, where, wanted)


def _finite(value: Any, where: str, wanted: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{where} must be {wanted}, not {shown(value)}") from None
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    refuse(not math.isfinite(number), f"{where} is {shown(value).strip(_QUOTES)}; it must be a finite number")
    return number


def _whole(value: Any, where: str) -> int:
    try:
        number = int(value) if isinstance(value, (str, numbers.Integral)) else None
    except ValueError:
        number = None  # perhaps 4.0 or 1e6
    if number is None:
        parsed = _finite(value, where, "a whole number")
        refuse(not parsed.is_integer(), f"{where} must be a whole number, not {shown(value)}")
        number = int(parsed)
    refuse(abs(number) > LARGEST, f"{where} is {shown(value).strip(_QUOTES)}; it must be below 2^63")
    return number


_QUOTES = "'"


def with_overrides(config: T, assignments: tuple[str, ...]) -> T:
    """Apply `name.sub=value` texts to nested settings, as in `with_overrides(run, ("model.width=64",))`."""
    values, given = _plain(config), set[str]()
    for text in assignments:
        path, equals, value = text.partition("=")
        refuse(not equals, f"setting {text!r}: write it as name=value")
        _open(config, values, path.strip())
        place, last = _place(values, path.strip())
        old = place[last]
        if isinstance(old, dict):
            raise UserError(f"{path} is a group; set one of its fields: {', '.join(old)}")
        place[last] = value.strip()
        given.add(path.strip())
    return from_dict(type(config), _with_tags(config, _settled(config, values, given)), "")


def _settled(config: Any, values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Let every settings value that has a method `settled(values, given)` fit what was not given to what was."""
    for field in dataclasses.fields(config):
        inner = getattr(config, field.name)
        if dataclasses.is_dataclass(inner):
            below = {name.partition(".")[2] for name in given if name.startswith(f"{field.name}.")}
            values[field.name] = _settled(inner, values[field.name], below)
    follow = getattr(config, "settled", None)
    return values if follow is None else follow(values, given)


def _open(config: Any, values: dict[str, Any], path: str) -> None:
    """Where a setting is named in a group that is None and may be settings, let the group have them, all None;
    `settled` of the settings around it says what they are."""
    for name in path.split(".")[:-1]:
        if not dataclasses.is_dataclass(config) or name not in values:
            return
        arms = [arm for arm in get_args(_hints(type(config))[name]) if dataclasses.is_dataclass(arm)]  # type: ignore[arg-type]
        if values[name] is None and arms:
            values[name] = dict.fromkeys(_hints(arms[0]))
        config, values = getattr(config, name), values[name]


def _place(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The dict that holds the last key of a dotted path, and that key."""
    *groups, last = path.split(".")
    place: Any = values
    for depth, key in enumerate([*groups, last]):
        if not isinstance(place, dict) or key not in place:
            wrong, known = ".".join([*groups, last][: depth + 1]), _paths(values)
            same = [name for name in known if name.rpartition(".")[2] == last]
            near = did_you_mean(path, known, first=same)
            raise UserError(f"there is no setting {wrong}{near}")
        if depth < len(groups):
            place = place[key]
    return place, last


def _paths(values: dict[str, Any], before: str = "") -> list[str]:
    """The dotted names of all settings."""
    found = []
    for name, value in values.items():
        found += _paths(value, f"{before}{name}.") if isinstance(value, dict) else [f"{before}{name}"]
    return found
