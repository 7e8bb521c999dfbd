"""Settings by name out of a table, with some fields replaced; a wrong name is answered with the near ones."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from hgrn2.errors import UserError, did_you_mean
from hgrn2.models.config import DeiTConfig, StackConfig

Config = TypeVar("Config", bound=StackConfig | DeiTConfig)


def made(name: str, table: Mapping[str, Callable[[], Config]], what: str, overrides: dict[str, Any]) -> Config:
    """The settings of this name; `what` is the kind of presets in messages, with a space behind it."""
    if name not in table:
        near = _suggestion(name, table)
        raise UserError(f"there is no {what}preset {name!r}{near}; {what}presets: {', '.join(table)}")
    base = table[name]()
    fields = [field.name for field in dataclasses.fields(base)]
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        near = did_you_mean(unknown[0], fields)
        raise UserError(f"a model has no setting {', '.join(unknown)}; it has: {', '.join(fields)}{near}")
    return dataclasses.replace(base, **overrides)


def _suggestion(name: str, table: Collection[str]) -> str:
    """` (did you mean …?)` with the nearest names, also where only `hgrn2_` or the case is missing."""
    wanted = name.strip().lower().replace("-", "_")
    near = [known for known in (f"hgrn2_{wanted}", f"hgrn1_{wanted}", wanted) if known in table]
    near += [known for known in difflib.get_close_matches(wanted, table, n=3, cutoff=0.7) if known not in near]
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""
