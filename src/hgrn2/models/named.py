"""Settings by name out of a table, with some fields replaced; a wrong name is answered with the near ones."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hgrn2.errors import UserError, did_you_mean, unknown
from hgrn2.models.config import DeiTConfig, StackConfig

Config = TypeVar("Config", bound=StackConfig | DeiTConfig)


def made(name: str, table: Mapping[str, Callable[[], Config]], what: str, overrides: dict[str, Any]) -> Config:
    """The settings of this name; `what` is the kind of presets in messages, with a space behind it."""
    if name not in table:
        bare = name.strip().lower().replace("-", "_")
        first = [known for known in (f"hgrn2_{bare}", f"hgrn1_{bare}", bare) if known in table]
        raise unknown(f"{what}preset", name, table, first=first)
    base = table[name]()
    fields = [field.name for field in dataclasses.fields(base)]
    strange = sorted(set(overrides) - set(fields))
    if strange:
        near = did_you_mean(strange[0], fields)
        raise UserError(f"a model has no setting {', '.join(strange)}; it has: {', '.join(fields)}{near}")
    return dataclasses.replace(base, **overrides)
