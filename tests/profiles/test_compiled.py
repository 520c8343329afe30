"""Tables are compiled once: found by their content, the same to the bit, whatever became of their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from harness.doctor import doctor
from harness.running.simulate import simulate_scenario
from profiles import compiled, kept
from profiles.attention import AttentionArrays, AttentionTable, Chunk, compile_attention
from profiles.compiled import LAYOUT, compiled_attention, forget, key_of, packed
from profiles.kept import COUNTS, folder, sealed, unsealed
from profiles.profile import SkewRows
from tests.harness.scenarios import write_scenario
from tests.profiles.test_attention import grid
from traces.errors import InputError, ProfileError

SKEW = SkewRows(
    *np.array([(8, 1, 0, 0, 64, 512, 120, 4e-6, 8e-6, 5e-6), (8, 1, 512, 0, 64, 512, 120, 5e-6, 9e-6, 8e-6)]).T
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, in the process and on the disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(kept.SWITCH, raising=False)
    forget()
    yield tmp_path / "cache" / "servetwin" / "tables"
    forget()


def as_bytes(table: AttentionArrays) -> bytes:
    return packed(table)


def the_file(home: Path) -> Path:
    (file,) = home.iterdir()
    return file


def test_a_table_is_compiled_once_and_read_by_the_next_process(home: Path) -> None:
    first = compiled_attention(grid(), SKEW)
    assert compiled_attention(grid(), SKEW) is first
    assert COUNTS == {"compiled": 1, "kept": 1}
    assert the_file(home).name == f"{key_of(grid(), SKEW)}.table"
    forget()  # as a new process
    again = compiled_attention(grid(), SKEW)
    assert COUNTS == {"read": 1}
    assert as_bytes(again) == as_bytes(first) == as_bytes(compile_attention(grid(), SKEW))
    for field in fields(AttentionArrays):
        np.testing.assert_equal(getattr(again, field.name), getattr(first, field.name))


def test_a_table_from_a_file_says_the_same_to_the_bit(home: Path) -> None:
    compiled_attention(grid(), SKEW)
    forget()
    read, made = AttentionTable(compiled_attention(grid(), SKEW)), AttentionTable(grid(), SKEW)
    chunks = [Chunk(300, 70), Chunk(90, 900)]
    mean, most = np.array([90.0, 91.0]), np.array([333.0, 334.0])
    assert read.mixed_s(chunks, 7, 90.5, 333.0) == made.mixed_s(chunks, 7, 90.5, 333.0)
    assert read.decode_s(9, mean, most).tobytes() == made.decode_s(9, mean, most).tobytes()
    assert (read.largest, read.filled_corners) == (made.largest, made.filled_corners)


def test_another_content_is_another_table() -> None:
    time_s = grid().time_s.copy()
    time_s[3] = np.nextafter(time_s[3], 1)
    keys = {key_of(grid(), SKEW), key_of(grid(), None), key_of(replace(grid(), time_s=time_s), SKEW)}
    assert len(keys) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:90] + b"x" + data[91:], lambda _: b""])
def test_a_damaged_file_is_compiled_again_counted_and_replaced(home: Path, damage: object) -> None:
    table = as_bytes(compiled_attention(grid()))
    whole = the_file(home).read_bytes()
    the_file(home).write_bytes(damage(whole))  # type: ignore[operator]
    forget()
    assert as_bytes(compiled_attention(grid())) == table
    assert COUNTS == {"damaged": 1, "compiled": 1}
    assert the_file(home).read_bytes() == whole


def test_doctor_looks_at_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> tuple[bool | None, str]:
        return next((check.ok, check.found) for check in doctor() if check.name.startswith("compiled tables"))

    assert said() == (None, f"none in {home}")
    compiled_attention(grid())
    assert said() == (True, f"1 in {home}")
    the_file(home).write_bytes(b"half")
    assert said() == (True, f"1 in {home}; 1 damaged, which are compiled again when they are needed")
    monkeypatch.setenv(kept.SWITCH, "off")
    assert said() == (None, "none kept")
    monkeypatch.setenv(kept.SWITCH, "perhaps")
    assert said()[0] is False


def test_a_file_of_another_layout_is_not_read() -> None:
    content = packed(compile_attention(grid()))
    assert unsealed(sealed(LAYOUT, content), LAYOUT) == content
    assert unsealed(sealed("servetwin.table/0", content), LAYOUT) is None


def test_it_can_be_switched_off_and_elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.SWITCH, "off")
    compiled_attention(grid())
    assert folder() is None
    assert not home.exists()
    monkeypatch.delenv(kept.SWITCH)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "servetwin" / "tables"


def test_a_switch_is_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.SWITCH, "no")
    with pytest.raises(InputError, match="found 'no'"):
        compiled_attention(grid())


def test_where_nothing_can_be_written_nothing_is_kept(home: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_text("a file, where the folder should be")
    compiled_attention(grid())
    assert COUNTS == {"compiled": 1, "not written": 1}
    assert home.is_file()


def test_folder_and_process_keep_only_so_many(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_FILES", 3)
    monkeypatch.setattr(compiled, "MOST_KEPT", 2)
    grids = [replace(grid(), time_s=grid().time_s * (1 + i)) for i in range(5)]
    for rows in grids:
        compiled_attention(rows)
    assert len(list(home.iterdir())) == 3
    assert len(compiled._KEPT) == 2
    compiled_attention(grids[-1])
    assert COUNTS["kept"] == 1


def test_what_is_no_table_is_refused_as_without_a_cache(home: Path) -> None:
    rows = grid()
    with pytest.raises(ProfileError, match="prefill alone"):
        compiled_attention(replace(rows, prefill_tokens=np.zeros_like(rows.prefill_tokens)))
    assert not home.exists()


def test_engines_and_points_of_one_profile_share_a_table(tmp_path: Path, home: Path) -> None:
    """Three kinds of engines in each of two scenarios: one table."""
    scenario = write_scenario(tmp_path)
    kinds = [{"model": "test/tiny", "device": "TESTGPU", "count": n} for n in (1, 2, 3)]
    for seats in (4, 8):
        simulate_scenario(scenario, [f"cluster.instances={kinds}", f"engine.max_num_seqs={seats}"])
    assert COUNTS == {"compiled": 1, "kept": 5, "profiles read": 1, "profiles kept": 5}
    file = tmp_path / "profiles" / "tiny" / "per_request.csv"
    file.write_text(file.read_text() + "\n")  # another content, and another profile of the same times
    simulate_scenario(scenario)
    assert COUNTS == {"compiled": 1, "kept": 6, "profiles read": 2, "profiles kept": 5}


def test_a_result_is_the_same_with_a_cache_and_without(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = write_scenario(tmp_path)
    captures = []
    for switch in ("on", "on", "off"):
        monkeypatch.setenv(kept.SWITCH, switch)
        forget()
        captures.append(simulate_scenario(scenario)[0].capture)
    first = captures[0]
    assert first.steps is not None
    for other in captures[1:]:
        assert other.steps is not None
        assert (other.outcomes, other.meta) == (first.outcomes, first.meta)
        assert other.steps.end_s.tobytes() == first.steps.end_s.tobytes()
