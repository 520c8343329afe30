"""What the parts of a spread model say to each other: calls and bytes counted by hand, and who splits tokens."""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from profiles.attention import Chunk
from profiles.llmservingsim import import_profiles
from profiles.model import FAMILIES, ModelSpec
from profiles.profile import MoeRows, Profile
from simulator.network.topology import Place
from simulator.scheduling.options import EngineOptions
from simulator.steps.experts import ExpertTimes, linear
from simulator.steps.gates import uniform
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import (
    SPLIT_SINCE,
    Communication,
    Partition,
    communication,
    expert_groups,
    use_sequence_parallel_moe,
)
from simulator.steps.step_time import StepCost
from tests.profiles.bundles import write_bundle
from tests.simulator.test_operator_model import plan
from traces.errors import InputError
from traces.steps import Floats

HIDDEN, EXPERTS, LAYERS = 64, 8, 6
MODEL = ModelSpec("m", LAYERS, HIDDEN, 128, 4, 2, 16, 1000, num_experts=EXPERTS, num_experts_per_tok=2)
LATEST = (0, 32)


class Each:
    """Collectives that take a second a byte, and take note of what is asked of them at one size."""

    def __init__(self, name: str, called: list[tuple[str, str, float]], at: int) -> None:
        self._name, self._called, self._at = name, called, at

    def all_reduce_s(self, n_bytes: object) -> Floats:
        return self._take("all_reduce", n_bytes)

    def all_gather_s(self, n_bytes: object) -> Floats:
        return self._take("all_gather", n_bytes)

    def reduce_scatter_s(self, n_bytes: object) -> Floats:
        return self._take("reduce_scatter", n_bytes)

    def all_to_all_s(self, n_bytes: object) -> Floats:
        return self._take("all_to_all", n_bytes)

    def count(self, operation: str, n_bytes: float, times: int) -> None:
        raise AssertionError

    def notes(self) -> tuple[str, ...]:
        return (f"from {self._name}",)

    def _take(self, operation: str, n_bytes: object) -> Floats:
        whole = np.asarray(n_bytes, dtype=np.float64)
        self._called.append((self._name, operation, float(whole[min(self._at, len(whole) - 1)])))
        return whole


def spread(tensor: int, data: int, *, split: bool, at: int = 0) -> tuple[Partition, list[tuple[str, str, float]]]:
    """Such a partition, and what is asked of its collectives: group, operation, bytes at `at` tokens (or requests)."""
    called: list[tuple[str, str, float]] = []
    tensor_times, data_times = Each("tensor", called, at), Each("data", called, at)
    return Partition(tensor, 1, data, True, tensor_times, data_times, use_sequence_parallel_moe=split), called


def talk(partition: Partition, max_tokens: int = 20) -> Communication:
    return communication(partition, MODEL, "bfloat16", max_tokens=max_tokens, max_requests=4)


# -- calls and bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "expected"),
    [  # at 9 tokens of a rank, and at 9 of all; requests end at 4
        (
            False,
            [
                ("tensor", "all_reduce", 9 * 64 * 2),
                ("tensor", "all_gather", 4 * 1000 * 2),
                ("data", "all_gather", 9 * (64 + 8) * 2),
                ("data", "reduce_scatter", 9 * 64 * 2),
            ],
        ),
        (
            True,
            [
                ("tensor", "all_reduce", 9 * 64 * 2),
                ("tensor", "all_gather", 12 * 64 * 2),  # 3 for each of 4 devices
                ("tensor", "all_gather", 4 * 1000 * 2),
                ("data", "all_gather", 9 * (64 + 8) * 2),
                ("data", "reduce_scatter", 9 * 64 * 2),
            ],
        ),
    ],
)
def test_collectives_are_those_of_the_engine(split: bool, expected: list[tuple[str, str, float]]) -> None:
    partition, called = spread(4, 2, split=split, at=9)
    talk(partition)
    assert called == expected


def test_an_all_gather_stands_behind_split_experts_instead_of_an_all_reduce() -> None:
    """Each takes a second a byte here: two all-reduces a layer of 9 tokens, or one and an all-gather of 12."""
    plain, split = (talk(spread(4, 2, split=split)[0]) for split in (False, True))
    assert plain.layer_s[9] == 2 * 9 * 64 * 2
    assert split.layer_s[9] == (9 + 12) * 64 * 2
    assert plain.layer_s[8] == split.layer_s[8]
    for same in ("once_s", "request_s", "stage_s"):
        assert getattr(plain, same).tolist() == getattr(split, same).tolist()


def test_all_tokens_that_can_enter_have_a_time() -> None:
    """Two ranks of 21 tokens, padded to 24 each."""
    plain, split = (talk(spread(4, 2, split=split)[0], 21) for split in (False, True))
    assert (len(plain.experts_s), len(split.experts_s)) == (2 * 21 + 1, 2 * 24 + 1)
    assert split.experts_s[:43].tolist() == plain.experts_s.tolist()
    assert split.experts_s[48] == 48 * (2 * 64 + 8) * 2


@pytest.mark.parametrize(("tokens", "entering"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8), (256, 256), (257, 260)])
def test_a_ranks_tokens_are_padded_to_equal_shares(tokens: int, entering: int) -> None:
    """`_compute_sp_num_tokens` of vLLM 0.32 gives each of 4 devices ceil(tokens / 4)."""
    assert spread(4, 2, split=True)[0].entering(tokens) == entering
    assert spread(4, 2, split=False)[0].entering(tokens) == tokens


def test_a_partition_says_that_tokens_are_split() -> None:
    note = "experts: the devices of a rank split its tokens before them, as vLLM's use_sequence_parallel_moe"
    assert spread(4, 2, split=True)[0].notes() == (note, "from tensor", "from data")
    assert spread(4, 2, split=False)[0].notes() == ("from tensor", "from data")


# -- who exchanges with whom -------------------------------------------------------------------------------------------


def test_devices_exchange_with_their_likes_or_all_with_all() -> None:
    """vLLM's groups (`parallel_state.py`) of two ranks of three devices: data-parallel, and expert-parallel."""
    ranks = [[Place(0, 3 * i + j) for j in range(3)] for i in range(2)]
    numbers = [[place.device for place in group] for group in expert_groups(ranks, split=False)]
    assert numbers == [[0, 3], [1, 4], [2, 5]]
    assert [[place.device for place in group] for group in expert_groups(ranks, split=True)] == [[0, 1, 2, 3, 4, 5]]


# -- which deployments split -------------------------------------------------------------------------------------------


def splits(
    model_type: str | None = "qwen3_moe",
    version: tuple[int, int] = LATEST,
    *,
    tensor: int = 2,
    data: int = 2,
    whole: bool = True,
) -> bool:
    model = dataclasses.replace(MODEL, model_type=model_type)
    return use_sequence_parallel_moe(model, version, tensor=tensor, data=data, expert_parallel=whole)


def test_ranks_of_several_devices_with_whole_experts_split_tokens() -> None:
    assert splits()
    assert not splits(tensor=1)
    assert not splits(data=1)
    assert not splits(whole=False)


@pytest.mark.parametrize("model_type", ["mixtral", "phimoe"])
def test_families_whose_code_does_not_heed_it_split_nothing(model_type: str) -> None:
    assert not splits(model_type)
    assert not splits(model_type, (0, 19))


def test_tokens_are_split_since_a_version() -> None:
    assert [splits(version=(0, minor)) for minor in (10, 11, 19, 33)] == [False, True, True, True]


def test_every_family_with_experts_was_read() -> None:
    assert set(SPLIT_SINCE) == {name for name, family in FAMILIES.items() if family.is_moe}


def test_a_family_that_was_not_read_is_refused_where_it_matters() -> None:
    assert not splits("deepseek_v3", tensor=1)
    with pytest.raises(InputError, match="found 'm, of type deepseek_v3': accepted: one of qwen3_moe, mixtral, phimoe"):
        splits("deepseek_v3")


INSTALLED = Path(__file__).parents[2] / ".venv-engine" / "lib"


@pytest.fixture
def vllm() -> Path:
    """The folder of an installed vLLM's own code."""
    found = sorted(INSTALLED.glob("python3*/site-packages/vllm"))
    if not found:
        pytest.skip("no vLLM is installed (scripts/install_engine.sh)")
    return found[0]


def property_of(file: Path, name: str) -> ast.FunctionDef:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_the_rule_is_that_of_vllms_own_code(vllm: Path) -> None:
    """The installed version's property, run as it stands there, for its default backend; and its models' code."""
    rule = property_of(vllm / "config" / "parallel.py", "use_sequence_parallel_moe")
    rule.decorator_list = []
    names: dict[str, object] = {}
    exec(textwrap.dedent(ast.unparse(rule)), names)
    theirs = names["use_sequence_parallel_moe"]
    assert callable(theirs)
    for tensor, data, whole in np.ndindex(3, 3, 2):
        config = SimpleNamespace(
            all2all_backend="allgather_reducescatter",
            enable_expert_parallel=bool(whole),
            tensor_parallel_size=tensor + 1,
            data_parallel_size=data + 1,
        )
        assert theirs(config) == splits(tensor=tensor + 1, data=data + 1, whole=bool(whole))
    for model_type, since in SPLIT_SINCE.items():
        text = (vllm / "model_executor" / "models" / f"{model_type}.py").read_text(encoding="utf-8")
        assert ("sequence_parallel_chunk(" in text) == (since is not None)


# -- in a step ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """One layer's operators and its experts, as if measured on two devices."""
    (imported,) = import_profiles(write_bundle(tmp_path / "bundle"))
    composition = msgspec.structs.replace(imported.meta.composition, per_layer=("attention", "moe"))
    meta = msgspec.structs.replace(imported.meta, composition=composition)
    return dataclasses.replace(imported, meta=meta, tables={2: imported.tables[1]})


def step(profile: Profile, *tokens: int, split: bool, **options: object) -> StepCost:
    """A step of ranks that each compute a prompt of so many tokens; experts take a microsecond a token and layer."""
    chosen = EngineOptions(**{"max_num_seqs": 8, "max_num_batched_tokens": 64, **options})  # type: ignore[arg-type]
    sizes = np.repeat([1.0, 128.0], 2)
    experts = ExpertTimes(
        MoeRows(sizes, np.tile([1.0, 8.0], 2), sizes * 1e-6 * 4), uniform(8, 2), linear(8, 4), num_layers=LAYERS
    )
    partition = Partition(2, 1, 2, True, use_sequence_parallel_moe=split)
    model = OperatorModel(profile, chosen, num_layers=LAYERS, partition=partition, experts=experts)
    first, *others = (plan(chunks=[Chunk(n, 0)]) for n in tokens)
    return model.price(msgspec.structs.replace(first, alongside=tuple(others)))


def entering(profile: Profile, *tokens: int, split: bool, **options: object) -> int:
    """The tokens of which a step's experts have the time, found by steps of one rank's tokens that need no padding."""
    cost = step(profile, *tokens, split=split, **options)
    assert cost.operators is not None
    for n in range(2, 130, 2):
        alike = step(profile, n // 2, n - n // 2, split=False, enforce_eager=True)
        assert alike.operators is not None
        if alike.operators.moe_s == cost.operators.moe_s:
            return n
    raise AssertionError


def test_each_ranks_tokens_are_padded_to_shares(profile: Profile) -> None:
    """Of 3 and 5 tokens on two devices each 4 and 6 enter; of 3 and of a dummy's one, 4 and 2."""
    assert entering(profile, 3, 5, split=False, enforce_eager=True) == 8
    assert entering(profile, 3, 5, split=True, enforce_eager=True) == 10
    assert entering(profile, 3, split=True, enforce_eager=True) == 6


def test_ranks_that_run_a_graph_are_padded_to_it_first(profile: Profile) -> None:
    """To the graph of 5 tokens, which is of 7; then to 8."""
    sizes = {"cudagraph_capture_sizes": (1, 3, 7)}
    assert entering(profile, 3, 5, split=False, **sizes) == 14
    assert entering(profile, 3, 5, split=True, **sizes) == 16
