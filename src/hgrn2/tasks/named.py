"""Recipes by name: those of the package, and one's own as MODULE:NAME, imported from the current directory too."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hgrn2.errors import UserError, did_you_mean, unknown
from hgrn2.settings import refuse

T = TypeVar("T")


def recipe_of(name: str, known: Mapping[str, Callable[[], T]], kind: type[T]) -> T:
    """The run of this name; an unknown one is a `UserError` with the nearest ones.

    Args:
        name: of a known recipe, or MODULE:NAME (`own_recipe`).
        known: recipes of the package.
        kind: class of the settings that all of them give.
    """
    if is_own(name):
        return own_recipe(name, kind)
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]()


def is_own(name: str) -> bool:
    """Whether it names a recipe of the user's rather than one of ours or a folder that is there."""
    return ":" in name and not Path(name).is_dir()


def own_recipe(name: str, kind: type[T]) -> T:
    """What MODULE:NAME is, or gives when it is called without arguments; the module may lie in the current directory.

    Raises:
        UserError: no such module or name in it, code that fails (with its file and line), a value of another class.
    """
    module, _, attribute = name.partition(":")
    refuse(not module or not attribute.isidentifier(), f"recipe {name!r}: write it as MODULE:NAME, such as mine:small")
    with _current_directory(), _told(name):
        found = _attribute(_imported(module), name, attribute)
        if not isinstance(found, kind) and callable(found):
            _check_arguments(found, name)
            found = found()
    if not isinstance(found, kind):
        given, needed = type(found).__name__, f"{kind.__name__} (from {kind.__module__})"
        raise UserError(f"recipe {name} gives a value of class {given}; this command needs {needed}")
    return found


@contextmanager
def _current_directory() -> Iterator[None]:
    """Modules are looked for in the current directory first, as `python -m` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # of a file that was written a moment ago
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever fails in the user's code is one line with its place."""
    try:
        yield
    except UserError as error:
        raise error if name in str(error) else UserError(f"recipe {name}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"recipe {name}: SyntaxError: {error.msg} ({error.filename}, line {error.lineno})") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        mine = [one for one in frames if one.filename.startswith(os.getcwd())] or frames
        place = f"({mine[-1].filename}, line {mine[-1].lineno})"
        raise UserError(f"recipe {name}: {type(error).__name__}: {error} {place}") from error


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module != missing and not module.startswith(f"{missing}."):  # another one, which the module asks for
            raise
        raise UserError(f"there is no module {missing!r}, neither in {os.getcwd()} nor installed") from None


def _attribute(module: Any, name: str, attribute: str) -> Any:
    if not hasattr(module, attribute):
        known = [one for one in vars(module) if not one.startswith("_")]
        raise UserError(f"recipe {name}: the module has no {attribute!r}{did_you_mean(attribute, known)}")
    return getattr(module, attribute)


def _check_arguments(found: Callable[..., Any], name: str) -> None:
    try:
        inspect.signature(found).bind()
    except TypeError:
        raise UserError(f"recipe {name} takes arguments; give a function without any") from None
