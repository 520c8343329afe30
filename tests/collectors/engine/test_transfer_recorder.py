"""The transfer recorder over a stand-in for vLLM's connector; tests/live has it over the real one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from collectors.engine import recorder_path
from collectors.engine.transfer_file import TransferRecording, read_transfers
from collectors.engine.transfer_recorder_folder import FILES, write_transfer_recorder

A, B = "cmpl-a-0-00000001", "cmpl-b-0-00000002"


class Connector:
    """The part of vLLM's connector that is listened to."""

    def __init__(self, vllm_config: Any, role: str, kv_cache_config: Any) -> None:
        self.connector_worker = object() if role == "worker" else None
        self._connector_metadata: Any = None
        self.results: Any = None
        self.stats: Any = None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing to load."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        return self.results

    def get_kv_connector_stats(self) -> Any:
        return self.stats


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The recorder, as a server loads it."""
    nixl = "vllm.distributed.kv_transfer.kv_connector.v1.nixl"
    parts = nixl.split(".")
    for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].__version__ = "0.32.0"  # type: ignore[attr-defined]
    sys.modules[nixl].NixlConnector = Connector  # type: ignore[attr-defined]
    monkeypatch.setenv("SERVETWIN_TRANSFERS", str(tmp_path / "transfers.jsonl"))
    write_transfer_recorder(tmp_path / "hooks")
    monkeypatch.syspath_prepend(str(tmp_path / "hooks"))
    for name in ("recorder", "transfer_recorder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("transfer_recorder")
    for name in ("recorder", "transfer_recorder"):
        sys.modules.pop(name, None)


CONFIG = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=0))


def asked(**blocks: int) -> Any:
    """A step's metadata: so many blocks of each request."""
    ids = {"a": A, "b": B}
    requests = {ids[name]: SimpleNamespace(local_block_ids=(list(range(n)),)) for name, n in blocks.items()}
    return SimpleNamespace(reqs_to_recv=requests)


def stats(*rows: tuple[int, int, float, float]) -> Any:
    """What NIXL tells of transfers: bytes, descriptors, time, time of posting."""
    names = ("bytes_transferred", "num_descriptors", "transfer_duration", "post_duration")
    return SimpleNamespace(data=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def look(connector: Any, *ids: str, failed: tuple[str, ...] = (), told: Any = None) -> None:
    """A step's end: vLLM asks what has come, and what NIXL says of it."""
    connector.results = SimpleNamespace(finished_recving=set(ids), failed_recving=set(failed))
    connector.stats = told
    assert connector.get_transfer_results(set()) is connector.results
    assert connector.get_kv_connector_stats() is told


def read(connector: Any, tmp_path: Path) -> TransferRecording:
    connector._transfers.log.close()
    return read_transfers(tmp_path / "transfers.jsonl")


def test_a_transfer_is_written_once_it_is_there(module: ModuleType, tmp_path: Path) -> None:
    connector = module.NixlConnector(CONFIG, "worker", None)
    connector._connector_metadata = asked(a=2)
    connector.start_load_kv(None)
    look(connector)
    look(connector, A, told=stats((1000, 8, 0.5, 0.1)))
    found = read(connector, tmp_path).transfers["a"]
    assert (found.n_blocks, found.n_bytes, found.n_descriptors) == (2, 1000, 8)
    assert (found.transfer_s, found.post_s, found.failed) == (0.5, 0.1, False)
    assert found.under_way_ns is not None
    assert found.asked_ns <= found.posted_ns <= found.under_way_ns <= found.found_ns


def test_figures_of_several_go_by_size(module: ModuleType, tmp_path: Path) -> None:
    connector = module.NixlConnector(CONFIG, "worker", None)
    connector._connector_metadata = asked(a=5, b=2)
    connector.start_load_kv(None)
    look(connector, A, B, told=stats((2500, 8, 0.5, 0.5), (1000, 4, 0.2, 0.2)))
    found = read(connector, tmp_path).transfers
    assert {name: one.n_bytes for name, one in found.items()} == {"a": 2500, "b": 1000}
    assert {name: one.transfer_s for name, one in found.items()} == {"a": 0.5, "b": 0.2}


def test_figures_that_cannot_be_told_apart_are_not_kept(module: ModuleType, tmp_path: Path) -> None:
    connector = module.NixlConnector(CONFIG, "worker", None)
    connector._connector_metadata = asked(a=5, b=2)
    connector.start_load_kv(None)
    look(connector, A, B, failed=(B,), told=stats((2500, 8, 0.5, 0.5)))
    found = read(connector, tmp_path).transfers
    assert found["a"].n_bytes is None
    assert found["b"].failed


def test_a_prompt_that_is_cached_here_is_no_transfer(module: ModuleType, tmp_path: Path) -> None:
    connector = module.NixlConnector(CONFIG, "worker", None)
    connector._connector_metadata = asked(a=0)
    connector.start_load_kv(None)
    look(connector)
    assert read(connector, tmp_path).transfers == {}


def test_an_error_of_ours_ends_the_recording_and_not_the_server(module: ModuleType, tmp_path: Path) -> None:
    connector = module.NixlConnector(CONFIG, "worker", None)
    log = connector._transfers.log
    connector._connector_metadata = SimpleNamespace()
    connector.start_load_kv(None)
    look(connector, A)
    log.close()
    (trouble,) = read_transfers(tmp_path / "transfers.jsonl").trouble
    assert "AttributeError" in trouble


@pytest.mark.parametrize("version", ["0.29.0", "0.40.0"])  # up to 0.29 a worker is asked in another way
def test_a_vllm_that_it_does_not_know_is_not_recorded(module: ModuleType, tmp_path: Path, version: str) -> None:
    sys.modules["vllm"].__version__ = version  # type: ignore[attr-defined]
    connector = module.NixlConnector(CONFIG, "worker", None)
    look(connector, A)
    (trouble,) = read_transfers(tmp_path / "transfers.jsonl").trouble
    assert trouble == f"the transfer recorder was off: servetwin knows vLLM 0.30 to 0.33; this is {version}"


def test_the_scheduler_side_is_left_alone(module: ModuleType, tmp_path: Path) -> None:
    assert module.NixlConnector(CONFIG, "scheduler", None)._transfers is None
    assert not (tmp_path / "transfers.jsonl").exists()


def test_the_folder_holds_all_that_a_server_loads(tmp_path: Path) -> None:
    write_transfer_recorder(tmp_path / "hooks")
    assert sorted(path.name for path in (tmp_path / "hooks").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "hooks" / name).read_text() == recorder_path().with_name(name).read_text()
