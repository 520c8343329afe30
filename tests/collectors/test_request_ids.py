"""The client's id is found in vLLM's, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from collectors.request_ids import id_of_engine, id_of_front_end


@pytest.mark.parametrize("name", ["0", "warm-up-1", "a-0-0123abcd", "r-7", "3f6c1a2b"])
def test_the_clients_id_stands_inside_the_servers(name: str) -> None:
    assert id_of_front_end(f"cmpl-{name}-0") == name
    assert id_of_front_end(f"chatcmpl-{name}") == name
    assert id_of_engine(f"cmpl-{name}-0-89abcdef") == name
    assert id_of_engine(f"chatcmpl-{name}-89abcdef") == name


@pytest.mark.parametrize("other", ["cmpl-r-7-1", "mine", "embd-1", "cmpl--0"])
def test_ids_of_other_forms_stay_as_they_are(other: str) -> None:
    assert id_of_front_end(other) == other
    assert id_of_engine(other) == other
    assert id_of_engine(f"{other}-89abcdef") == f"{other}-89abcdef"
