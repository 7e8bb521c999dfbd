"""The one exception that a user's mistake raises: the command line prints it as one line and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class UserError(Exception):
    """Something the user can mend: a missing file, sizes that do not divide, a checkpoint of another model.

    The message is one line, says what is wrong and what to do. Library callers may catch it; `hgrn2` on the command
    line prints it after `error:` and exits with code 2. Programming errors stay ordinary exceptions.
    """


def did_you_mean(name: Any, known: Iterable[Any], *, first: Iterable[str] = ()) -> str:
    """`; did you mean X?` where a known name is near a mistyped one, for the end of a message; else nothing.

    `first` are names that the caller knows to be near, of which up to three are named instead: `did you mean X or Y?`.
    """
    near = list(first)[:3]
    if not near:
        lower = {str(one).lower(): str(one) for one in reversed(list(known))}
        near = [lower[found] for found in get_close_matches(str(name).lower(), lower, 1)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def unknown(noun: str, name: str, known: Iterable[Any], *, first: Iterable[str] = ()) -> UserError:
    """The error about a name that does not exist: what is near it, and all that there is."""
    names = [str(one) for one in known]
    return UserError(
        f"there is no {noun} {name!r}{did_you_mean(name, names, first=first)} (choose from {', '.join(names)})"
    )
