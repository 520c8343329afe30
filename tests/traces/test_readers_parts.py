"""What is particular to a format: its units, its sessions, its shared prefixes, what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.traces.samples import NS, export, span
from traces.errors import InputError
from traces.formats import read_any_trace, stream_trace
from traces.hashes import chained
from traces.trace import Trace


def read(folder: Path, text: str, name: str = "trace") -> Trace:
    (folder / name).write_text(text)
    return read_any_trace(folder / name)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def test_azure_counts_a_tenth_of_a_microsecond_across_midnight(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE + "2023-12-31 23:59:59.9999999,5,3\r\n2024-01-01 00:00:00.0000001,5,3")
    assert [row.arrival_s for row in trace.rows] == [0.0, 2e-7]
    assert any("no zone" in note for note in trace.notes)


def test_azure_of_2024_states_a_zone(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 02:00:00+02:00,7,1\n")
    assert [row.arrival_s for row in trace.rows] == pytest.approx([0.0, 0.00993])
    assert [row.prompt_tokens for row in trace.rows] == [7, 2162]
    assert not any("no zone" in note for note in trace.notes)
    with pytest.raises(InputError, match=r"trace:3: field 'TIMESTAMP'.*with a zone"):
        read(tmp_path, AZURE + "2024-05-10 00:00:00Z,1,1\n2024-05-10 00:00:00,1,1\n")


def test_azure_multimodal_names_what_is_not_read(tmp_path: Path) -> None:
    trace = read(tmp_path, "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2025-01-01 00:00:00,2,5,3\n")
    assert "columns that were not read: NumImages" in trace.notes


def test_mooncake_hashes_full_blocks_of_512(tmp_path: Path) -> None:
    rows = [(1024, [7, 8]), (1300, [7, 8, 9]), (1024, [6, 8])]
    text = "".join(
        json.dumps({"timestamp": 1500, "input_length": n, "output_length": 1, "hash_ids": ids}) + "\n"
        for n, ids in rows
    )
    trace = read(tmp_path, text)
    a, b, c = (row.block_hashes for row in trace.rows)
    assert trace.hash_block_size == 512
    assert a == b == chained([7, 8])
    assert c is not None
    assert not set(c) & set(a or ())
    assert [row.arrival_s for row in trace.rows] == [1.5] * 3


@pytest.mark.parametrize("n_ids", [0, 1, 4])
def test_mooncake_needs_an_id_for_every_block(tmp_path: Path, n_ids: int) -> None:
    line = {"timestamp": 0, "input_length": 1300, "output_length": 1, "hash_ids": list(range(n_ids))}
    with pytest.raises(InputError, match=rf"field 'hash_ids': found '{n_ids} ids': accepted: 3 ids"):
        read(tmp_path, json.dumps(line))


def test_supersets_of_mooncake_wait_for_their_session(tmp_path: Path) -> None:
    lines = [
        {"session_id": "s", "timestamp": 100, "input_length": 5, "output_length": 2, "text_input": "secret"},
        {"session_id": "s", "delay": 500, "input_length": 9, "output_length": 2},
        {"timestamp": 200, "delay": 5, "input_length": 9, "output_length": 2},
    ]
    trace = read(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert [(row.arrival_s, row.session_id, row.delay_s) for row in trace.rows] == [
        (0.1, "s", None),
        (0.1, "s", 0.5),
        (0.2, None, None),
    ]
    assert "fields that were not read: text_input" in trace.notes
    assert "secret" not in repr(trace)
    with pytest.raises(InputError, match="field 'timestamp': is missing"):
        read(tmp_path, json.dumps({"delay": 5, "input_length": 9, "output_length": 2}))


def test_bailian_talks_have_the_session_of_their_root(tmp_path: Path) -> None:
    lines = [
        {
            "chat_id": i,
            "parent_chat_id": parent,
            "timestamp": i,
            "input_length": 16,
            "output_length": 1,
            "hash_ids": [i],
        }
        for i, parent in ((1, -1), (2, 1), (3, 2), (9, 8))
    ]
    trace = read(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert [row.session_id for row in trace.rows] == ["1", "1", "1", "8"]
    assert trace.hash_block_size == 16


def test_burstgpt_leaves_out_what_failed_and_checks_totals(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    trace = read(tmp_path, header + "5,GPT-4,10,2,12,API log\n6,GPT-4,10,0,10,API log\n")
    assert [row.request_id for row in trace.rows] == ["0"]
    assert "1 requests of 0 output tokens were left out: there is nothing to serve" in trace.notes
    with pytest.raises(InputError, match="'Total tokens': found '11': accepted: 12"):
        read(tmp_path, header + "5,GPT-4,10,2,11,API log\n")


def test_vidur_lengths_alone_arrive_at_once(tmp_path: Path) -> None:
    text = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,2,12,5.0\n20,4,24,5.0\n"
    trace = read(tmp_path, text)
    assert [row.arrival_s for row in trace.rows] == [0.0, 0.0]
    assert any("states no arrivals" in note for note in trace.notes)
    with pytest.raises(InputError, match="'arrived_at': is missing"):
        read(tmp_path, text.replace("pd_ratio", "time"))


@pytest.mark.parametrize(("column", "value"), [("request_type", "1"), ("batch_size", "2")])
def test_splitwise_requests_of_another_kind_are_refused(tmp_path: Path, column: str, value: str) -> None:
    cells = {"request_id": "0", "request_type": "2", "application_id": "0", "arrival_timestamp": "1", "batch_size": "1"}
    cells |= {"prompt_size": "5", "token_size": "3", column: value}
    with pytest.raises(InputError, match=f"field '{column}': found '{value}'"):
        read(tmp_path, f"{','.join(cells)}\n{','.join(cells.values())}\n")


TRACEV2 = (
    "request_id,prefix_group,prefix_length,input_tokens,output_tokens,server_input_tokens,arrival_time_us,status\n"
)


def test_tracev2_shares_the_prefix_of_a_group(tmp_path: Path) -> None:
    rows = "0,g,40,10,1,0,0,ok\n1,g,40,9,1,999,5,ok\n2,h,40,9,1,0,6,ok\n3,,0,10,1,31,7,error\n"
    trace = read(tmp_path, TRACEV2 + rows)
    a, b, c, d = trace.rows
    assert [row.prompt_tokens for row in trace.rows] == [50, 49, 49, 31]
    assert a.block_hashes == b.block_hashes
    assert len(a.block_hashes or ()) == 2
    assert not set(a.block_hashes or ()) & set(c.block_hashes or ())
    assert d.block_hashes is None
    assert trace.hash_block_size == 16
    assert any("status 'error'" in note for note in trace.notes)


def test_tracev2_reads_the_header_beside_it(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("trace_version: 3\ntime_unit: us\nmode: real\nserver: {block_size: 8}\n")
    assert read(tmp_path, TRACEV2 + "0,g,40,10,1,0,0,ok\n", "t.csv").hash_block_size == 8
    (tmp_path / "t.yaml").write_text("trace_version: 3\ntime_unit: ms\n")
    with pytest.raises(InputError, match=r"t\.yaml.*'time_unit': found 'ms'"):
        read(tmp_path, TRACEV2 + "0,g,40,10,1,0,0,ok\n", "t.csv")


def test_spans_within_spans_are_counted_once(tmp_path: Path) -> None:
    agent = span("agent", NS, 900, 90)
    calls = [span("call1", NS + 1, 500, 50, "agent"), span("call2", NS + 10**9, 400, 40, "agent")]
    server = span("server1", NS + 2, 500, 50, "call1")
    trace = read(tmp_path, export(server) + export(*calls, agent))
    assert [(row.request_id, row.prompt_tokens) for row in trace.rows] == [("cmpl-server1", 500), ("cmpl-call2", 400)]
    assert "2 spans hold requests within them: those are counted instead" in trace.notes


def test_a_conversation_of_spans_is_a_session(tmp_path: Path) -> None:
    one = span("a", NS, 9, 1)
    one["attributes"].append({"key": "gen_ai.conversation.id", "value": {"stringValue": "talk"}})
    assert read(tmp_path, export(one)).rows[0].session_id == "talk"


def test_a_file_that_is_refused_is_closed_while_its_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(AZURE + "2023-12-31 23:59:59.9999999,5,3\r\n" + "2024-01-01 00:00:00,5\r\n")
    for read in (read_any_trace, lambda path: list(stream_trace(path))):
        with pytest.raises(InputError, match="has 2 cells") as kept:
            read(path)
        assert path not in [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()], kept
