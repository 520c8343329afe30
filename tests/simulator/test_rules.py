"""Which vLLM version's rules are followed, and what is said of a version that nobody has tried."""

from __future__ import annotations

import pytest

from simulator.engine import check_options
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import REFERENCE, REFERENCE_RULES, rules_notes, rules_of, version_of
from traces.errors import InputError


@pytest.mark.parametrize(
    ("engine", "version"),
    [
        ("vllm 0.32.0", (0, 32)),
        ("vllm 0.19.2rc1.dev3+g12ab", (0, 19)),
        ("0.26", (0, 26)),
        ("0.32.0+cpu", (0, 32)),
        ("servetwin", None),
        ("sglang 0.5.2", None),
        ("", None),
        (None, None),
    ],
)
def test_the_version_is_read_from_the_engines_name(engine: str | None, version: tuple[int, int] | None) -> None:
    assert version_of(engine) == version


def test_the_reference_has_its_own_versions_rules() -> None:
    assert rules_of(REFERENCE) == REFERENCE_RULES
    assert REFERENCE_RULES.name == "vllm 0.32"


def test_rules_change_with_the_version_that_changed_them() -> None:
    changed_in = {
        "unfinished_blocks_first": (0, 24),
        "lone_request_unlimited": (0, 31),
        "skips_after_idle_victim": (0, 28),
        "step_ends_with_own_preemption": (0, 33),
    }
    for name, (major, minor) in changed_in.items():
        before, after = rules_of((major, minor - 1)), rules_of((major, minor))
        assert getattr(before, name) != getattr(after, name)
        assert getattr(rules_of((0, 19)), name) == getattr(before, name)
        assert getattr(rules_of((0, 40)), name) == getattr(after, name)


def test_a_version_out_of_the_proved_range_is_said_to_be() -> None:
    assert rules_notes((0, 19)) == rules_notes((0, 33)) == []
    assert rules_of((0, 11)).version == (0, 19)
    assert rules_notes((0, 11)) == [
        "vLLM 0.11 is older than those the scheduler was proved against: its rules are taken to be those of vllm 0.19"
    ]
    assert "newer" in rules_notes((1, 0))[0]


def test_an_option_that_the_version_does_not_have_is_refused() -> None:
    options = EngineOptions(watermark=0.1)
    check_options(options, 1000, rules_of((0, 24)))
    with pytest.raises(InputError, match=r"engine.watermark.*needs vLLM 0.24, and the rules followed are those of"):
        check_options(options, 1000, rules_of((0, 23)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_num_active_seqs": 300}, "max_num_active_seqs"),
        ({"long_prefill_token_threshold": 2000}, "long_prefill_token_threshold"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 999}, "max_num_batched_tokens"),
        ({"max_num_batched_tokens": 99}, "max_num_batched_tokens"),
    ],
)
def test_what_vllm_refuses_at_start_is_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=f"engine.{name}"):
        check_options(EngineOptions(**options), 1000, REFERENCE_RULES)  # type: ignore[arg-type]
