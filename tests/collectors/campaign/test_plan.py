"""What a campaign measures and in which order, and the loads it sends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collectors.campaign.loads import at_once, at_rate, long_prompts, prefixes, pulses, served_per_s, shape
from collectors.campaign.parts import Part
from collectors.campaign.plan import FULL, GIVEN, SCALES, TINY, Host, Scale, Served, plan, write_model
from profiles.catalog import BUNDLED, model_configs
from profiles.model import read_model
from tests.engines import trace
from traces.capture import Capture, CaptureMeta
from traces.errors import CollectorError
from traces.outcome import Outcome, Status
from traces.trace import Trace, checked_rows, read_trace

META = CaptureMeta(kind="measured", engine=None, model="m", device=None, clock="c")


def host(work: Path, **changes: object) -> Host:
    return Host(work=work, engine_python=Path("/engine/python"), device="A GPU", **changes)  # type: ignore[arg-type]


def part(parts: list[Part], name: str) -> Part:
    return next(part for part in parts if part.name == name)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_parts_come_in_order_of_value_and_have_names_of_their_own(tmp_path: Path, scale: Scale) -> None:
    names = [part.name for part in plan(scale, host(tmp_path))]
    assert len(set(names)) == len(names)
    wanted = ["device", "llama-burst", "llama-knee-1", "llama-light-1", "llama-knee-2", "llama-light-2"]
    wanted += ["llama-saturated-1", "llama-saturated-2"]
    wanted += ["llama-operators", "llama-operators-hooks", "llama-operators-torch"]
    wanted += [f"llama-{load}" for load in ("prefix-1", "long-1", "pulses-1", "prefix-2", "long-2")]
    assert names[: len(wanted)] == wanted
    assert {"moe-knee-1", "moe-knee-2", "moe-operators"} <= set(names)


def test_models_with_experts_need_their_kernels(tmp_path: Path) -> None:
    labels = {part.name.partition("-")[0] for part in plan(FULL, host(tmp_path, experts=False))}
    assert labels == {"device", "llama", "dense"}


def test_every_profile_has_other_ways_to_be_measured(tmp_path: Path) -> None:
    parts = plan(FULL, host(tmp_path))
    assert part(parts, "llama-operators-hooks").instead_of == "llama-operators"
    assert part(parts, "llama-operators-torch").instead_of == "llama-operators-hooks"
    words = part(parts, "llama-operators-torch").command(tmp_path, "")
    assert words[words.index("--engine") + 1] == "torch"
    assert words[words.index("--timer") + 1] == "hooks"
    words = part(parts, "llama-operators").command(tmp_path, "")
    assert words[words.index("--timer") + 1] == "profiler"


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_load_fits_in_the_server_it_is_sent_to(scale: Scale) -> None:
    longest, loads = scale.engine_options["--max-model-len"], scale.loads
    block_size = scale.engine_options["--block-size"]
    for load in (shape(loads, 300), prefixes(loads, block_size, 5.0), long_prompts(loads), pulses(loads)):
        checked_rows(load.rows, "load", range(len(load.rows)))
        assert max(row.prompt_tokens + row.output_tokens for row in load.rows) <= longest
    requests = shape(loads, scale.main.n_requests).rows
    assert longest + block_size <= scale.small_kv_tokens  # with the null block; vLLM refuses a smaller cache
    assert sum(row.prompt_tokens + row.output_tokens for row in requests) > 1.2 * scale.small_kv_tokens


def test_the_full_shape_is_that_of_the_measured_runs() -> None:
    requests = shape(FULL.loads, 300)
    assert np.mean([row.prompt_tokens for row in requests.rows]) == pytest.approx(857, rel=0.05)
    assert np.mean([row.output_tokens for row in requests.rows]) == pytest.approx(653, rel=0.02)
    assert requests.rows[-1].arrival_s == pytest.approx(300, rel=0.15)


def test_a_workload_keeps_its_requests_and_prefixes_and_gets_the_campaigns_clock() -> None:
    given = trace((3.0, 10, 5), (3.5, 20, 6), (5.0, 30, 7), hashes=[(1,), (1,), (2,)], size=8)
    found = shape(FULL.loads, 2, given)
    assert [row.arrival_s for row in found.rows] == [0.0, 1.0]
    assert [row.prompt_tokens for row in found.rows] == [10, 20]
    assert found.rows[0].block_hashes == (1,)
    assert [row.arrival_s for row in at_rate(found, 4.0).rows] == [0.0, 0.25]
    assert [row.arrival_s for row in at_once(found).rows] == [0.0, 0.0]


def test_conversations_share_their_prefix_with_their_own_next_turn() -> None:
    rows = prefixes(FULL.loads, 16, 5.0).rows
    hashes = [row.block_hashes or () for row in rows]
    assert all(16 * len(own) < row.prompt_tokens <= 16 * (len(own) + 1) for own, row in zip(hashes, rows, strict=True))
    n_shared = sum(any(own[: len(old)] == old for old in hashes[:i]) for i, own in enumerate(hashes))
    assert n_shared > len(rows) / 2


def burst(*finish_s: float | None) -> Capture:
    outcomes = tuple(
        Outcome(
            request_id=str(i),
            arrival_s=0.0,
            prompt_tokens=1,
            output_tokens=1,
            status=Status.FAILED if end_s is None else Status.FINISHED,
            finish_s=end_s,
        )
        for i, end_s in enumerate(finish_s)
    )
    return Capture(META, trace((0.0, 1, 1)), outcomes)


def test_a_rate_is_of_a_burst_that_was_served_whole() -> None:
    assert served_per_s(burst(1.0, 4.0)) == 0.5
    with pytest.raises(CollectorError, match="1 requests of the burst were not served"):
        served_per_s(burst(1.0, None))


def test_a_load_at_a_share_of_a_rate_needs_the_rate(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="llama-burst is not complete"):
        part(plan(TINY, host(tmp_path)), "llama-knee-1").command(tmp_path, "")


def given() -> Trace:
    return trace(*((float(i), 20, 6) for i in range(20)))


def test_a_capture_of_a_given_workload_says_that_it_is_one(tmp_path: Path) -> None:
    drawn = part(plan(TINY, host(tmp_path)), "llama-burst").command(tmp_path, "http://here")
    assert GIVEN not in drawn
    words = part(plan(TINY, host(tmp_path, workload=given())), "llama-burst").command(tmp_path, "http://here")
    assert GIVEN in words
    assert [row.prompt_tokens for row in read_trace(tmp_path / "trace.jsonl.gz").rows] == [20] * 16


def test_no_two_loads_have_the_same_prompts(tmp_path: Path) -> None:
    seeds = set()
    parts = [one for one in plan(TINY, host(tmp_path, workload=given())) if "burst" in one.name]
    parts += [part(plan(TINY, host(tmp_path)), name) for name in ("llama-long-1", "llama-long-2", "llama-pulses-1")]
    for one in parts:
        words = list(one.command(tmp_path, ""))
        seeds.add(words[words.index("--seed") + 1])
    assert len(seeds) == len(parts) == 5


@pytest.mark.parametrize("served", [FULL.main, *FULL.others], ids=lambda served: served.label)
def test_a_model_of_the_campaign_is_served_with_a_word_for_each_token(tmp_path: Path, served: Served) -> None:
    folder = write_model(model_configs([BUNDLED])[served.name], tmp_path)
    model = read_model(folder / "config.json", served.name)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(model.vocab_size))
    longest = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
    assert longest == model.max_position_embeddings >= FULL.engine_options["--max-model-len"]
