"""A user's own class: a router, an order of requests, a rule of what is evicted; named as `module:Class`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from traces.errors import InputError, nearest


def load_class(name: str, *, field: str) -> Callable[..., Any]:
    """The class that `module:Class` names; the module is imported as Python finds it. Raises InputError."""
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name.isidentifier():
        raise InputError(field=field, found=name, accepted="module:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        what = f"module {module_name!r} cannot be imported ({type(error).__name__}: {error})"
        accepted = "a module that Python finds, on PYTHONPATH for one"
        raise InputError(what, field=field, found=name, accepted=accepted) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        what = f"module {module_name!r} has no class {class_name!r}"
        raise InputError(what, field=field, found=name, accepted=nearest(class_name, classes))
    return found
