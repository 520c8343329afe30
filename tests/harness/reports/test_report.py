"""What lies on disk becomes a page, or a message that says why not."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from calibrate.calibration import encode_calibration
from harness.reports import page as page_module
from harness.reports.page import Page, Section, table
from harness.reports.report import report
from harness.reports.sweep_page import read_sweep
from harness.reports.validation_page import Compared, validation_page
from tests.harness.reports.runs import calibration, compared, run
from traces.capture import write_capture
from traces.errors import InputError


def write_validation(found: Compared, folder: Path, *, measured: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "validation.json").write_bytes(msgspec.json.encode(found.result))
    write_capture(found.simulated, folder / "simulated")
    if measured and found.measured is not None:
        write_capture(found.measured, folder / "measured")
    return folder


def written(files: list[Path]) -> str:
    (file,) = files
    return file.read_text(encoding="utf-8")


def charts(page: str) -> set[str]:
    found = re.search(r'<script type="application/json" id="data-charts">(.*?)</script>', page)
    assert found
    return set(json.loads(found[1]))


def test_ten_thousand_requests_are_under_six_megabytes() -> None:
    found = compared(10_000)
    text = validation_page(found).html()
    assert len(text.encode()) < 6_000_000
    assert "Of 10,000 requests, 1,000 quantiles are drawn." in text
    assert "Shades count 10,000 requests by cells; the 200 farthest off are also dots." in text


def test_the_library_is_the_one_that_its_readme_names() -> None:
    folder = Path(page_module.__file__).parent / "plotly"
    digest = hashlib.sha256((folder / "plotly-cartesian.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()


def test_the_page_of_a_validation_says_how_far_off_and_how_sure(tmp_path: Path) -> None:
    found = compared()
    found.result["noise_floor"] = {"paired": {"ttft_s": {"mape": 0.0312}, "tpot_s": None, "e2el_s": None}}
    found.result["error_over_floor"] = {"ttft_s": 1.5, "tpot_s": None, "e2el_s": None}
    text = written(report([write_validation(found, tmp_path / "check")]))
    assert "<strong>VALID</strong>" in text
    mean = found.result["metrics"]["ttft_s"]["mean"]
    assert f"<b>{mean['error']:+.1%}</b>" in text
    assert "noise floor 3.1%" in text
    assert {"errors", "scatter-ttft_s", "worst", "stages", "series-power_w"} <= charts(text)
    assert (tmp_path / "check" / "report.html").is_file()


def with_notes(found: Compared, *notes: str) -> Compared:
    """The same, of a twin with these notes."""
    meta = msgspec.structs.replace(found.simulated.meta, notes=notes)
    return replace(found, simulated=replace(found.simulated, meta=meta))


def trusted(text: str) -> list[str]:
    """What a page says of how far to trust its figures."""
    return re.findall(
        "<li>(.*?)</li>", text.partition("<section id='how-far-to-trust-it'>")[2].partition("</section>")[0]
    )


def test_the_page_of_a_validation_says_first_how_far_to_trust_its_times(tmp_path: Path) -> None:
    beyond = "3 of 9 steps priced beyond the profile's measured range: tokens per step"
    line = "3 of 9 steps (33.3%) priced beyond the profile's measured range: tokens per step"
    line = line.replace("'", "&#x27;")
    far = write_validation(with_notes(compared(), "2 instances", beyond), tmp_path / "far")
    text = written(report([far]))
    assert trusted(text) == [line]
    assert text.index("id='how-far-to-trust-it'") < text.index("id='errors'")
    near = write_validation(with_notes(compared(), "2 instances"), tmp_path / "near")
    assert "how-far-to-trust-it" not in written(report([near]))
    both = written(report([near, far], tmp_path / "both.html"))
    assert trusted(both) == [f"far: {line}"]
    assert both.index("id='how-far-to-trust-it'") < both.index("id='verdicts'")


def test_an_invalid_validation_says_so_first(tmp_path: Path) -> None:
    found = compared(10)
    text = written(report([write_validation(found, tmp_path / "check")]))
    assert "<strong>INVALID</strong>not to be relied on: 10 requests scored, fewer than 20" in text


def test_without_the_measured_run_its_curves_are_left_out(tmp_path: Path) -> None:
    text = written(report([write_validation(compared(), tmp_path / "check", measured=False)]))
    assert "does not hold the measured run" in text
    assert "scatter-ttft_s" not in charts(text)
    assert "errors" in charts(text)


def test_what_a_capture_says_of_itself_is_text_and_no_markup(tmp_path: Path) -> None:
    write_capture(run(), tmp_path / "run")
    text = written(report([tmp_path / "run"]))
    assert "a &lt;note&gt; &amp; its sign" in text
    assert "<note>" not in text


def test_the_same_input_gives_the_same_page() -> None:
    assert validation_page(compared()).html() == validation_page(compared()).html()


def test_a_run_of_which_only_series_are_known_has_a_page(tmp_path: Path) -> None:
    whole = compared().measured
    assert whole is not None
    write_capture(replace(whole, outcomes=(), steps=None), tmp_path / "run")
    assert charts(written(report([tmp_path / "run"]))) == {"series-power_w"}


def test_captures_stand_side_by_side_under_names_that_tell_them_apart(tmp_path: Path) -> None:
    for day in ("monday", "tuesday"):
        write_capture(run(step_s=0.01 if day == "monday" else 0.02), tmp_path / day / "run")
    page = written(report([tmp_path / "monday" / "run", tmp_path / "tuesday" / "run"], tmp_path / "days.html"))
    assert "<h3>monday/run</h3>" in page
    assert "distribution-e2el_s" in charts(page)


def test_without_out_each_has_its_own_page(tmp_path: Path) -> None:
    for day in ("monday", "tuesday"):
        write_capture(run(), tmp_path / day)
    assert report([tmp_path / "monday", tmp_path / "tuesday"]) == [
        tmp_path / "monday" / "report.html",
        tmp_path / "tuesday" / "report.html",
    ]


def test_a_calibrations_page_stands_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "fitted.json").write_bytes(encode_calibration(calibration()))
    text = written(report([tmp_path / "fitted.json"]))
    assert (tmp_path / "fitted.html").is_file()
    assert "The data tell 1 of 12 parameters" in text
    assert charts(text) == {"parameters", "residuals"}


def test_a_sweep_is_a_table_and_a_chart(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("point,engine.max_num_seqs,ttft_s.mean,status\n0,16,0.3,ok\n1,32,,failed\n")
    text = written(report([tmp_path]))
    assert "2 points." in text
    sweep = read_sweep(tmp_path)
    assert sweep.numbers["ttft_s.mean"] == [0.3, None]
    assert "status" not in sweep.numbers


def test_a_studys_page_begins_with_its_front(tmp_path: Path) -> None:
    study = {
        "objectives": {"ttft_s.mean": "min", "cost.total": "min"},
        "constraints": {},
        "front": [1],
        "n_failed": 0,
        "notes": ["a note"],
        "study": {},
        "scenario": {},
        "points": [{"overrides": {"seed": 0}}, {"overrides": {"seed": 1}}],
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    (tmp_path / "results.csv").write_text(
        "point,is_front,seed,ttft_s.mean,ttft_s.p99,cost.total\n0,false,0,0.31234567,1,2\n1,true,1,0.2,2,1\n"
    )
    text = written(report([tmp_path]))
    assert "2 points, 0 failed; 1 are not beaten by ttft_s.mean min, cost.total min." in text
    assert "<option value='ttft_s.mean' selected>" in text
    assert "<option value='is_front' selected>" in text
    front = text[text.index("<section id='front'>") : text.index("<section id='points'>")]
    assert "<td class=text>1</td><td>1</td><td>200 ms</td><td>1</td>" in front
    assert "<td>312.3 ms</td>" not in front
    assert "<td>312.3 ms</td>" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1\n", r"results.csv:2: has 1 cells: accepted: 2"),
        ("a,b\n", r"holds no point"),
        ("", r"holds no point"),
    ],
)
def test_a_sweep_without_a_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        report([tmp_path])


def test_what_has_no_page_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    write_capture(run(), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: has no report: accepted: a capture, a validation"):
        report([tmp_path / "run", tmp_path / "empty"])
    assert not (tmp_path / "run" / "report.html").exists()
    with pytest.raises(InputError, match=r"no such folder or file"):
        report([tmp_path / "nowhere"])


def test_different_kinds_do_not_stand_side_by_side(tmp_path: Path) -> None:
    write_capture(run(), tmp_path / "run")
    write_validation(compared(), tmp_path / "check")
    with pytest.raises(InputError, match=r"found 'run \(capture\), check \(validation\)': accepted: several of one"):
        report([tmp_path / "run", tmp_path / "check"], tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()


def test_a_page_that_is_there_is_not_written_over_by_out(tmp_path: Path) -> None:
    write_capture(run(), tmp_path / "run")
    (tmp_path / "mine.html").write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        report([tmp_path / "run"], tmp_path / "mine.html")


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("cluster.instances.0.count", "cluster.<wbr>instances.<wbr>0.<wbr>count"),
        ("ttft_s.p95 ≤ 150 ms", "ttft_s.<wbr>p95 ≤\u00a0150\u00a0ms"),
        ("power_w ≤ 0.95", "power_w ≤\u00a00.95"),
        ("95 % interval", "95\u00a0% interval"),
        ("within <a>", "within &lt;a&gt;"),
    ],
)
def test_a_header_breaks_behind_the_joints_of_names_and_in_no_figure(header: str, shown: str) -> None:
    assert f"<th scope='col'>{shown}</th>" in table([header], [["1"]]).replace(" class=text", "")


def test_a_section_without_a_body_is_left_out() -> None:
    text = Page("title", "", (Section("Nothing of it", ""), Section("Full of it", table(["a"], [["b"]])))).html()
    assert "<a href='#full-of-it'>Full of it</a>" in text
    assert "Nothing of it" not in text
