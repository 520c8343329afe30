"""Runs side by side: what differs in them first, then what that did to what people decide by."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.demo import BUNDLED
from harness.reports.capture_page import capture_page
from harness.reports.captures_page import captures_page, different_keys
from harness.reports.differences import Row, compared_table, difference
from harness.reports.report import report
from harness.reports.run_figures import served_rows, slo_rows
from harness.running.simulate import simulate_scenario, write_simulation
from harness.running.stream import stream_scenario
from tests.harness.reports.runs import run
from tests.harness.scenarios import EXAMPLES
from traces.capture import Capture, read_capture
from traces.errors import InputError
from traces.metrics import summary
from traces.trace import NO_FILE

POWER = EXAMPLES / "power.yaml"
LESS = ("engine.max_num_seqs=2", "cost.price_per_device_hour=0.08")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the example with power, objectives and prices: as it is, with fewer seats, and with impatient clients."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {"wide": (), "narrow": LESS, "hasty": ("deadline_s=0.9",)}.items():
        write_simulation(*simulate_scenario(POWER, overrides), folder / name)
    return folder


def page(folder: Path, *names: str) -> str:
    out = folder / f"{'-'.join(names)}.html"
    out.unlink(missing_ok=True)
    report([folder / name for name in names], out)
    return out.read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    return text.partition(f"<section id='{name}'>")[2].partition("</section>")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The lines of all tables in a part of a page, the first of each name, by name."""
    found: dict[str, list[str]] = {}
    for line in re.findall(r"<tr>(<td.*?)</tr>", text):
        name, *cells = re.findall(r"<td[^>]*>(.*?)</td>", line)
        found.setdefault(name, cells)
    return found


def test_what_differs_stands_first(simulated: Path) -> None:
    text = page(simulated, "wide", "narrow")
    said = "they differ in engine.max_num_seqs: 8 -&gt; 2, cost.price_per_device_hour: 0.04 -&gt; 0.08."
    assert f"2 runs side by side; {said}" in text
    assert rows(section(text, "what-differs")) == {
        "engine.max_num_seqs": ["8", "2"],
        "cost.price_per_device_hour": ["0.04", "0.08"],
    }
    order = ["what-differs", "what-it-did", "latencies", "distributions", "over-time", "stages", "configuration"]
    places = [text.index(f"<section id='{name}'>") for name in order]
    assert places == sorted(places)


def test_what_people_decide_by_has_the_difference_to_the_first_run(simulated: Path) -> None:
    did = rows(section(page(simulated, "wide", "narrow"), "what-it-did"))
    assert did["requests finished"] == ["90", "90", "same"]
    assert "requests rejected" not in did
    first, second, off = did["cost per million output tokens (USD)"]
    assert off == f"{float(second) / float(first):.3g} times, worse" or off.endswith("% worse")
    assert not did["cost (USD)"][2].endswith("worse")  # a total says neither
    met = did["met: TTFT within 100 ms, TPOT within 12 ms"]
    assert met[0].endswith("%")
    assert met[2].endswith(" points worse")
    assert did["requests/s offered"][2] == "same"
    assert {"J per output token", "of it devices (J)", "mean power (W)", "goodput (requests/s)", "steps"} <= did.keys()
    assert "All runs are steady." in page(simulated, "wide", "narrow")


def test_rates_of_other_requests_are_called_neither_better_nor_worse(simulated: Path) -> None:
    if not (simulated / "twice").exists():
        write_simulation(*simulate_scenario(POWER, ("load.speed=2",)), simulated / "twice")
    text = page(simulated, "wide", "twice")
    assert "The runs did not serve the same requests." in section(text, "what-it-did")
    assert rows(section(text, "what-differs")) == {"load.speed": ["not said", "2"]}
    did, rates = rows(section(text, "what-it-did")), ("requests/s served", "output tokens/s")
    assert not any(did[rate][2].endswith(("better", "worse")) for rate in rates)
    assert all(float(did[rate][1]) > float(did[rate][0]) for rate in rates)
    alike = {row.label: row.better for row in served_rows([summary(run())], alike=True)}
    assert [alike[rate] for rate in rates] == ["more", "more"]


def of_rate(served: float, *, is_steady: bool | None = True, n_finished: int = 60) -> dict[str, Any]:
    """Figures of a run that was offered one request per second, and served so many."""
    figures = summary(run())
    figures["metrics"] |= {"requests_per_s": served, "output_tokens_per_s": 100 * served}
    there = {"halfway": 2, "at_last_arrival": 2, "is_steady": is_steady}
    return figures | {"requests_offered_per_s": 1.0, "in_system": there, "n_finished": n_finished}


def test_a_drain_is_neither_better_nor_worse_and_a_queue_that_grows_is(simulated: Path) -> None:
    kept_up, also, behind, fewer = of_rate(0.8), of_rate(0.9), of_rate(0.7, is_steady=False), of_rate(0.7, n_finished=9)
    untold, unknown = of_rate(0.7, is_steady=None), of_rate(0.7) | {"requests_offered_per_s": None}
    names, every = list("abcdef"), [kept_up, also, behind, fewer, untold, unknown]
    did = rows(compared_table(names, served_rows(every, alike=True), "rates"))
    for rate in ("requests/s served", "output tokens/s"):
        assert did[rate][2::2] == ["+12.5%", "-12.5% worse", "-12.5% worse", "-12.5%", "-12.5%"]
    swapped = rows(compared_table(["c", "a"], served_rows([behind, kept_up], alike=True), "rates"))
    assert swapped["requests/s served"][2] == "+14.3% better"
    for one, met in ((kept_up, 54), (also, 54), (behind, 54)):
        one["slo"] = {"limits": {"ttft_s": 1.0}, "n_meeting": met, "goodput_per_s": one["metrics"]["requests_per_s"]}
    goodput = rows(compared_table(list("abc"), slo_rows([kept_up, also, behind]), "slo"))["goodput (requests/s)"]
    assert goodput[2::2] == ["+12.5%", "-12.5% worse"]
    counted = "All runs are steady. Rates of what was served count the time after the last arrival too."
    assert counted in section(page(simulated, "wide", "narrow"), "what-it-did")


def offered(rate: float | None, seats: int | None = None, **more: Any) -> dict[str, Any]:
    """Figures of a run that served half a request per second, of what it was offered."""
    scenario = {} if rate is None and seats is None else {"scenario": {"trace": "t", "concurrency": seats}}
    return of_rate(0.5, is_steady=False) | {"requests_offered_per_s": rate} | scenario | more


@pytest.mark.parametrize(
    ("first", "second", "word", "why"),
    [
        (offered(1.0), offered(1.0), " worse", None),
        (offered(1.0), offered(0.5), "", "the runs did not get them at the same rate, or by the same seats"),
        (offered(None, 4), offered(None, 4), " worse", None),
        (offered(None, 4), offered(None, 2), "", "the runs did not get them at the same rate, or by the same seats"),
        (offered(1.0), offered(None), "", "it is not known at what rate, or by how many seats, b got them"),
        (offered(None), offered(None), "", "it is not known at what rate, or by how many seats, a, b got them"),
    ],
)
def test_by_rates_a_run_is_better_only_where_both_are_known_to_be_offered_the_same(
    first: dict[str, Any], second: dict[str, Any], word: str, why: str | None
) -> None:
    less = second | {"metrics": second["metrics"] | {"requests_per_s": 0.25, "output_tokens_per_s": 25.0}}
    for said in (first, less):
        said["slo"] = {"limits": {"ttft_s": 1.0}, "n_meeting": 5, "goodput_per_s": said["metrics"]["requests_per_s"]}
    text = captures_page({"a": run(), "b": run()}, {"a": first, "b": less}).html()
    did = rows(section(text, "what-it-did"))
    for rate in ("requests/s served", "output tokens/s", "goodput (requests/s)"):
        assert did[rate][2] == ("0.5 times, worse" if word else "0.5 times")
    assert (why is None) == ("no rate of what was served is better or worse" not in text)
    assert why is None or f"Of the same requests, {why}: no rate of what was served is better or worse." in text


def test_two_measured_runs_are_not_judged_by_what_they_served() -> None:
    measured = {name: read_capture(BUNDLED / "captures" / "saturated-1") for name in "ab"}
    slower = summary(measured["b"])
    slower["metrics"] |= {"output_tokens_per_s": slower["metrics"]["output_tokens_per_s"] / 3}
    text = captures_page(measured, {"a": summary(measured["a"]), "b": slower}).html()
    assert rows(section(text, "what-it-did"))["output tokens/s"][2] == "0.333 times"
    assert "it is not known at what rate, or by how many seats, a, b got them" in text


ROOFLINE = "a roofline from the datasheet, a bound and not a measurement: 1 Tflop/s"
BOUND = "a roofline from the datasheet, a bound and not a measurement; validated: a bound; against no run"


def noted(*notes: str, device: str = "H100") -> Capture:
    one = run()
    return replace(one, meta=msgspec.structs.replace(one.meta, notes=notes, model="m", device=device))


def test_how_far_to_trust_each_run_stands_before_its_figures() -> None:
    blocks = [f"{n} KV blocks predicted: much" for n in (1, 2)]
    captures = {name: noted(ROOFLINE, note, "another") for name, note in zip("ab", blocks, strict=True)}
    text = captures_page(captures, {name: summary(run()) for name in "ab"}).html()
    said = section(text, "how-far-to-trust-it")
    assert re.findall("<li>(.*?)</li>", said) == [f"all: {BOUND}", f"a: {blocks[0]}", f"b: {blocks[1]}"]
    assert text.index("id='how-far-to-trust-it'") < text.index("id='what-it-did'")
    one = capture_page(captures["a"], summary(run())).html()
    assert re.findall("<li>(.*?)</li>", section(one, "how-far-to-trust-it")) == [BOUND, blocks[0]]
    assert one.index("id='how-far-to-trust-it'") < one.index("id='latencies'")
    assert "how-far-to-trust-it" not in capture_page(noted("another"), summary(run())).html()


def test_the_model_and_the_device_of_each_run_stand_above_everything() -> None:
    captures = {"a": noted(device="H100"), "b": noted(device="H200")}
    text = captures_page(captures, {name: summary(run()) for name in "ab"}).html()
    assert rows(text[: text.index("<section")]) == {
        "a": ["simulated", "m", "H100"],
        "b": ["simulated", "m", "H200"],
    }


def test_one_run_that_kept_up_says_why_it_served_less_than_was_offered() -> None:
    text = capture_page(run(), of_rate(0.8) | {"n_requests": 2}).html()
    assert ">Requests per second: 1 offered to the last arrival, 0.8 served to the last finish.<" in text
    assert ">Steady: the engines kept up, 2 requests in the system at the last arrival, 2 halfway;" in text


def test_requests_from_no_file_are_told_apart_by_themselves() -> None:
    light, prefix = (read_capture(BUNDLED / "captures" / name) for name in ("light-1", "prefix-1"))
    assert {one.meta.provenance["trace"] for one in (light, prefix)} == {NO_FILE}
    both = different_keys([light, prefix], [{}, {}])
    assert both == {"trace": [one.trace.sha256[:19] for one in (light, prefix)]}
    assert different_keys([light, light], [{}, {}]) == {}


def test_an_option_of_several_parts_is_compared_part_by_part() -> None:
    one = run()
    drafts = [{"method": "ngram", "num_speculative_tokens": n} for n in (2, 3)]
    captures = [
        replace(one, meta=msgspec.structs.replace(one.meta, engine_options={"speculative_config": draft}))
        for draft in drafts
    ]
    assert different_keys(captures, [{}, {}]) == {"engine.speculative_config.num_speculative_tokens": ["2", "3"]}


def test_a_run_beside_itself_is_refused(simulated: Path) -> None:
    with pytest.raises(InputError, match="wide: is named twice: accepted: each once"):
        page(simulated, "wide", "wide")


def test_a_summary_that_is_none_is_refused(simulated: Path, tmp_path: Path) -> None:
    shutil.copytree(simulated / "wide", tmp_path / "wide")
    (tmp_path / "wide" / "summary.json").write_text('{"n_requests": 1}')
    for others in ([], [simulated / "narrow"]):
        with pytest.raises(InputError, match=r"summary\.json: field 'n_finished': is missing: accepted: a summary"):
            report([tmp_path / "wide", *others], tmp_path / "page.html")


def test_latencies_of_fewer_requests_are_called_neither_better_nor_worse(simulated: Path) -> None:
    text = page(simulated, "wide", "narrow", "hasty")
    did, latencies = rows(section(text, "what-it-did")), rows(section(text, "latencies"))
    aborted = did["requests aborted"]
    assert (aborted[0], aborted[4]) == ("0", "up from 0, worse")
    assert f"hasty {90 - int(aborted[3])} of 90." in text
    assert latencies["E2EL"][2].endswith(" worse")
    assert not latencies["E2EL"][4].endswith(("better", "worse"))
    assert rows(section(text, "what-differs"))["deadline_s"] == ["not said", "not said", "0.9"]


def test_other_limits_and_other_money_are_called_neither(simulated: Path) -> None:
    changed = ("slo.ttft_s=0.2", "cost.currency=EUR")
    if not (simulated / "changed").exists():
        write_simulation(*simulate_scenario(POWER, changed), simulated / "changed")
    did = rows(section(page(simulated, "wide", "changed"), "what-it-did"))
    assert did["met: each its own limits"][2].endswith(" points")
    assert did["cost per request within the SLO (each in its own currency)"][2][-1] in "%s"
    narrow = rows(section(page(simulated, "wide", "narrow"), "what-it-did"))
    assert narrow["cost per request within the SLO (USD)"][2].endswith("worse")


def test_notes_that_only_some_have_come_first(simulated: Path) -> None:
    one = run()
    other = replace(one, meta=msgspec.structs.replace(one.meta, notes=(*one.meta.notes, "a note of its own")))
    text = captures_page({"a": one, "b": other}, {name: summary(one) for name in "ab"}).html()
    found = section(text, "notes")
    assert found.index("<h3>b, not all</h3><ul><li>a note of its own</li></ul>") < found.index("<h3>all</h3>")
    assert "<h3>a, not all</h3>" not in found


def test_a_run_that_is_not_steady_is_named(tmp_path: Path) -> None:
    one = run()
    known: list[dict[str, Any]] = [
        summary(one) | {"in_system": {"halfway": 2, "at_last_arrival": n, "is_steady": n < 10}} for n in (2, 30)
    ]
    text = captures_page({"a": one, "b": one}, dict(zip("ab", known, strict=True))).html()
    assert "Not steady, so that a longer trace may wait longer: b." in text
    few = {"in_system": {"halfway": 2, "at_last_arrival": 2, "is_steady": None}}
    told = captures_page({"a": one, "b": one}, {"a": known[1], "b": summary(one) | few}).html()
    assert "wait longer: a. Of too few requests to tell whether a queue grows: b." in told
    assert rows(section(text, "what-it-did"))["in the system at the last arrival"] == ["2", "30", "15 times"]


def test_captures_without_a_scenario_are_compared_by_what_they_recorded(simulated: Path) -> None:
    one, other = run(), run()
    options = {**one.meta.engine_options, "max_num_seqs": 99, "max_model_len": 77}
    other = replace(other, meta=msgspec.structs.replace(other.meta, engine_options=options))
    known = [summary(one), summary(other)]
    assert different_keys([one, other], known)["engine.max_num_seqs"] == ["16", "99"]
    text = captures_page({"a": one, "b": other}, dict(zip("ab", known, strict=True))).html()
    assert "No scenario is kept with a, b: what all runs recorded is compared." in text
    same = captures_page({"a": one, "b": one}, dict(zip("ab", known, strict=True))).html()
    assert "2 runs side by side; nothing that they record of their inputs differs." in same


def test_files_that_hold_the_same_are_the_same(simulated: Path, tmp_path: Path) -> None:
    trace = POWER.parent / "../../harness/bundled/captures/light-1/trace.jsonl.gz"
    copy = tmp_path / "again.jsonl.gz"
    copy.write_bytes(trace.read_bytes())
    write_simulation(*simulate_scenario(POWER, (f"trace={copy}",)), tmp_path / "copy")
    other = trace.parents[1] / "prefix-1" / "trace.jsonl.gz"
    write_simulation(*simulate_scenario(POWER, (f"trace={other.resolve()}",)), tmp_path / "other")
    (tmp_path / "wide").symlink_to(simulated / "wide")
    assert "nothing that they record of their inputs differs" in page(tmp_path, "wide", "copy")
    text = page(tmp_path, "wide", "other")
    assert "The runs did not serve the same requests." in text
    assert list(rows(section(text, "what-differs"))) == ["trace"]


def test_a_streamed_run_keeps_its_scenario_too(tmp_path: Path) -> None:
    overrides = ("cluster.power=null", "slo=null", "cost=null", "engine.max_num_seqs=4")
    figures = stream_scenario(POWER, tmp_path / "streamed", overrides)
    assert figures["scenario"]["engine"]["max_num_seqs"] == 4


@pytest.mark.parametrize(
    ("value", "first", "options", "said"),
    [
        (1.123, 1.0, {"better": "less"}, "+12.3% worse"),
        (1.123, 1.0, {"better": "more"}, "+12.3% better"),
        (1.123, 1.0, {"better": None}, "+12.3%"),
        (0.877, 1.0, {"better": "less"}, "-12.3% better"),
        (2.4, 1.0, {"better": "less"}, "2.4 times, worse"),
        (0.1, 1.0, {"better": "less"}, "0.1 times, better"),
        (1.0, 1.0, {"better": "less"}, "same"),
        (1.0001, 1.0, {"better": "less"}, "+0.0%"),
        (0.9999, 1.0, {"better": "less"}, "-0.0%"),
        (3.0, 0.0, {"better": "less"}, "up from 0, worse"),
        (0.0, 3.0, {"better": "less"}, "down to 0, better"),
        (0.7, 0.8, {"better": "more", "is_share": True}, "-10.0 points worse"),
        (0.8001, 0.8, {"better": "more", "is_share": True}, "+0.0 points"),
        (None, 1.0, {"better": "less"}, "–"),
        (1.0, None, {"better": "less"}, "–"),
    ],
)
def test_a_difference_in_words(value: float | None, first: float | None, options: Any, said: str) -> None:
    assert difference(value, first, **options) == said


def test_a_figure_that_no_run_has_is_left_out() -> None:
    values: Sequence[Sequence[float | None]] = ([None, None], [1.0, None])
    known = [Row(name, own, str) for name, own in zip(("none", "one"), values, strict=True)]
    assert rows(compared_table(["a", "b"], known, "figures")) == {"one": ["1.0", "–", "–"]}
    assert compared_table(["a", "b"], known[:1], "figures") == ""
