"""Every setting of every kind of run, from the dataclasses and the texts below their fields."""

import ast
import dataclasses
import inspect
import types
import typing
from typing import Any, Literal, NamedTuple

KINDS: dict[str, tuple[str, str]] = {
    "lm": ("hgrn2 train lm RECIPE", "hgrn2.train.config:RunConfig"),
    "mqar": ("hgrn2 train mqar RECIPE, hgrn2 study mqar", "hgrn2.tasks.mqar.config:MQARRun"),
    "sequence": ("hgrn2 train lra TASK, classifiers of sequences", "hgrn2.tasks.classify.config:ClassifyRun"),
    "image": ("hgrn2 train image NAME", "hgrn2.tasks.classify.config:ClassifyRun"),
    "deit": ("hgrn2 train image NAME --model deit", "hgrn2.tasks.classify.config:ClassifyRun"),
    "tune": ("hgrn2 tune state MODEL", "hgrn2.tasks.tune.config:TuneSettings"),
    "listops": ("hgrn2 data lra listops", "hgrn2.data.lra.listops:ListOps"),
    "pathfinder": ("hgrn2 data lra pathfinder, pathx", "hgrn2.data.lra.pathfinder_settings:Pathfinder"),
}
"""Kind -> commands that take these names after --set, and where the class is."""
MODELS = {"sequence": "SequenceConfig", "image": "VisionConfig", "deit": "DeiTConfig"}
"""Which of several classes `model` is."""
REQUIRED = "of the recipe"


class Setting(NamedTuple):
    """A line of the page."""

    name: str
    type: str
    default: str
    meaning: str


def settings_of(kind: str) -> list[Setting]:
    """Every name that --set takes for this kind of run, in the order of the classes; what it does not read is left
    out."""
    from importlib import import_module

    module, _, name = KINDS[kind][1].partition(":")
    run = getattr(import_module(module), name)
    unread = getattr(run, "unread", {})
    return [one for one in _of(run, "", MODELS.get(kind), None) if one.name not in unread]


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for kind, (commands, _) in KINDS.items():
        lines = [f"## {kind}", "", f"`{commands}`", "", *TABLE]
        lines += ["| " + " | ".join(_cells(one)) + " |" for one in settings_of(kind)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


TABLE = ("| name | type | default | meaning |", "| --- | --- | --- | --- |")
HEAD = """\
# Settings

Made by `hgrn2 settings --out docs/settings.md`; do not edit. Every name that `--set NAME=VALUE` takes, for each kind of
run; `hgrn2 settings KIND` prints one of them. Defaults are those of the classes: a recipe may set others, and
`config.json` in a run folder holds what a run really had. Lists are written with commas, nothing as `none`, and
`true` or `false`."""


def _cells(one: Setting) -> tuple[str, ...]:
    default = one.default if one.default in (REQUIRED, "") else f"`{one.default}`"
    return f"`{one.name}`", _escaped(one.type), default, _escaped(one.meaning)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _of(kind: type, before: str, model: str | None, made: Any) -> "typing.Iterator[Setting]":
    """The settings of a class; `made` is the value that stands there by default, where there is one."""
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    for field in dataclasses.fields(kind):
        if field.name == "kind" and not before:
            continue  # what kind of run it is
        name, hint = before + field.name, hints[field.name]
        default = _default(field) if made is None else getattr(made, field.name)
        inner = _class_of(hint, model)
        if inner is not None and default is None:
            yield Setting(name, "none, or a group", "none", texts.get(field.name, ""))
        elif inner is not None:
            given = default if isinstance(default, inner) else None
            yield from _of(inner, f"{name}.", model, given)
        else:
            shown = REQUIRED if default is dataclasses.MISSING else _written(default)
            yield Setting(name, _type(hint), shown, texts.get(field.name, ""))


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _class_of(hint: Any, model: str | None) -> type | None:
    arms = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [arm for arm in arms if dataclasses.is_dataclass(arm)]
    named = [arm for arm in kinds if getattr(arm, "__name__", "") == model]
    return (named or kinds or [None])[0]  # pyright: ignore[reportReturnType]


def _texts(kind: type) -> dict[str, str]:
    """What stands below each field, in this class or in those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for one, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and _is_text(after):
                found[one.target.id] = " ".join(ast.literal_eval(after.value).split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _type(hint: Any) -> str:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arms))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if arm is types.NoneType else _type(arm) for arm in arms)
    if origin is tuple:
        return f"list of {_NAMES[arms[0]]}s" if arms[0] in _NAMES else f"list of: {_type(arms[0])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


_NAMES: dict[Any, str] = {int: "whole number", float: "number", bool: "true, false", str: "text"}


def _written(value: Any) -> str:
    """As --set would take it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
