"""The client's X-Request-Id inside the ids that vLLM makes of it (0.32 entrypoints/openai, v1/engine/async_llm.py).

    completions   cmpl-<X-Request-Id>-<prompt>      in the front end, with -<8 hex digits> behind it in the engine
    chat          chatcmpl-<X-Request-Id>           likewise

The first prompt of a request goes by the client's id; a further one, or an id of another form, stays as it is.
"""

from __future__ import annotations

import re

_FRONT_END = re.compile(r"cmpl-(?P<id>.+)-0|chatcmpl-(?P<chat>.+)")
_ENGINE = re.compile(r"(?P<front_end>.+)-[0-9a-f]{8}")


def id_of_front_end(front_end_id: str) -> str:
    """The client's id in a front end's."""
    match = _FRONT_END.fullmatch(front_end_id)
    return (match["id"] or match["chat"]) if match else front_end_id


def id_of_engine(engine_id: str) -> str:
    """The client's id in an engine's."""
    match = _ENGINE.fullmatch(engine_id)
    if match is None:
        return engine_id
    found = id_of_front_end(match["front_end"])
    return engine_id if found == match["front_end"] else found
