"""Everything servetwin raises on purpose, in one tree.

ServetwinError
├── InputError          a file or an option is wrong                        exit 2
│   ├── ProfileError    a profile lacks what a prediction needs              exit 2
│   └── CapacityError   the model cannot fit on the described hardware       exit 2
├── EngineError         an engine or server failed                          exit 3
└── CollectorError      a measurement could not be taken or kept             exit 3

A message says where, what was found, and what is accepted. The command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class ServetwinError(Exception):
    """Base of every error that servetwin raises on purpose."""

    exit_code = 2


class InputError(ServetwinError):
    """A file or an option that cannot be used as it is.

    Attributes:
        file: the file, when there is one.
        line: its line, counted from 1.
        field: the field inside it, as a dotted path.
        found: what stands there.
        accepted: what would be accepted.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        found: object = None,
        accepted: str | None = None,
    ) -> None:
        self.file = None if file is None else str(file)
        self.line = line
        self.field = field
        self.found = found
        self.accepted = accepted
        super().__init__(self._text(message))

    def _text(self, message: str) -> str:
        where = "" if self.file is None else self.file
        if self.line is not None:
            where += f":{self.line}"
        parts = [where] if where else []
        if self.field is not None:
            parts.append(f"field '{self.field}'")
        if message:
            parts.append(message)
        if self.found is not None:
            parts.append(f"found {shorten(self.found)}")
        if self.accepted is not None:
            parts.append(f"accepted: {self.accepted}")
        return ": ".join(parts)


class ProfileError(InputError):
    """A profile lacks what a prediction needs: an operator, a parallelism, a range."""


class CapacityError(InputError):
    """The model cannot fit on the described hardware."""


class EngineError(ServetwinError):
    """An engine or server failed."""

    exit_code = 3


class CollectorError(ServetwinError):
    """A measurement could not be taken or kept."""

    exit_code = 3


def shorten(value: object, limit: int = 60) -> str:
    """`repr(value)`, cut to `limit` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def installs(extra: str) -> str:
    """How to install an extra of the package: from the clone, as no index has the package itself."""
    return f"pip install '.[{extra}]', in the clone of servetwin"


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of an unknown name: those that it is the beginning of, or the nearest known one, or all of them."""
    names = sorted(known)
    longer = [one for one in names if name and one.casefold().startswith(name.casefold())]
    if longer:
        return ", ".join(longer) if len(longer) > 1 else f"'{longer[0]}' is the nearest known name"
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"'{close[0]}' is the nearest known name"
    return ", ".join(names) if names else "nothing is known here"
