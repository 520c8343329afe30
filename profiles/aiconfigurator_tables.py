"""The tables of aiconfigurator-core, an optional extra: which systems it has, what it collected, and what it answers.

One `Tables` is one system (its name of a device) with one version of vLLM. Rows of other versions and other engines,
with which the package would fill gaps, are switched off; only for collectives is an earlier version's file taken, and
said. What is not public in the package, as of version 0.12, stands in this file alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiles.model import ModelSpec
from traces.errors import EngineError, InputError, installs, nearest
from traces.steps import Ints

if TYPE_CHECKING:
    import pandas as pd

BACKEND = "vllm"

TABLES = ("gemm_perf", "moe_perf", "context_attention_perf", "generation_attention_perf", "custom_allreduce_perf",
          "nccl_perf")  # fmt: skip
"""Those that are read here."""

PACKAGE = "aiconfigurator-core"

DEVICES = ("A100-80GB", "B200", "B300", "GB200", "GB300", "H100", "H200", "L40S", "RTXPRO6000")
"""The catalogue's devices of which version 0.12 has tables: what is said where the extra is not installed."""

COMMUNICATION = ("CustomAllReduce", "Nccl", "P2P", "MoeDispatch")
"""Kinds of operators that are between devices."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One of the package's operators, as it writes them for its engine.

    Attributes:
        name: the package's own.
        kind: such as Gemm or GenerationAttention.
        fields: its sizes and types; `scale_factor` is how often it runs in a step.
    """

    name: str
    kind: str
    fields: dict[str, Any]

    @property
    def count(self) -> float:
        """How often it runs in a step."""
        return float(self.fields["scale_factor"])

    @property
    def once(self) -> str:
        """The engine's JSON for one run."""
        return json.dumps([{self.kind: {**self.fields, "scale_factor": 1.0}}])


@dataclass(frozen=True, slots=True)
class Experts:
    """How tokens are spread over experts, and these over devices.

    Attributes:
        distribution: of tokens, by the package's name.
        tp: devices that share each expert.
        ep: devices, or groups of such, that have other experts.
    """

    distribution: str
    tp: int
    ep: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds of an operator, and where from: `silicon` (a table), `empirical` (a formula), or `mixed`."""

    time_s: float
    source: str


_SAID: dict[tuple[str, str], list[str]] = {}
"""Warnings by system and version: the package gives each once in a process, and whatever is read later notes it too."""


class Tables:
    """What was collected on one system with one version of vLLM.

    Attributes:
        system: the package's name of a device.
        version: of vLLM.
        warnings: what the package warned of: now, or before in this process.
    """

    def __init__(self, system: str, version: str | None = None) -> None:
        """Load them.

        Args:
            system: the package's name of a device.
            version: of vLLM; None: the system's current one.

        Raises:
            InputError: it has no such system or version.
            EngineError: the extra is not installed.
        """
        if not has_system(system):
            message = "aiconfigurator-core has no such system"
            raise InputError(message, field="system", found=system, accepted=nearest(system, systems()))
        slots = _version_slots(system)
        if version not in (None, *slots.values()):
            accepted = ", ".join(dict.fromkeys(slots.values()))
            raise InputError(f"was not collected on {system}", field="version", found=version, accepted=accepted)
        self.system = system
        self._database, self._engine, warnings = _loaded(system, version or "current", fill_gaps=False)
        self.version = str(self._database.version)
        self.warnings = _SAID.setdefault((system, self.version), [])
        self._warned(warnings)
        self._read: dict[str, pd.DataFrame] = {}

    def description(
        self, model: ModelSpec, tp: int, gemm: str, kv: str, experts: Experts | None = None
    ) -> tuple[list[Operator], list[Operator]]:
        """The operators of a prefill and of a decode step: the package's own description, with our dimensions.

        Args:
            model: dimensions.
            tp: tensor-parallel degree.
            gemm: type of matrix products in layers and of experts, by its name.
            kv: type of keys and values.
            experts: how tokens and experts are spread; of a dense model None.
        """
        config = _sdk("config_builders").build_model_config(
            tp,
            1,
            1,
            1 if experts is None else experts.tp,
            1 if experts is None else experts.ep,
            gemm_quant_mode=gemm,
            kvcache_quant_mode=kv,
            moe_quant_mode="bfloat16",
            fmha_quant_mode="bfloat16",
            comm_quant_mode="half",
        )
        dimensions = (
            model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim, model.hidden_size,
            model.intermediate_size, model.vocab_size, model.max_position_embeddings or 0, config,
            {"use_qk_norm": model.qk_norm},
        )  # fmt: skip
        if experts is None:
            built = _sdk("models.llama").LLAMAModel(model.name, "LLAMA", "LlamaForCausalLM", *dimensions)
            return self._operators(built.context_ops), self._operators(built.generation_ops)
        sizes = model.num_experts_per_tok, model.num_experts, model.intermediate_size
        names = model.name, "MOE", "MixtralForCausalLM"
        built = _sdk("models.moe").MOEModel(*sizes, *names, *dimensions, backend_name=BACKEND)
        # Set here and not in its config: for some types the model's constructor looks for a file of that name.
        asked = {"quant_mode": gemm, "workload_distribution": experts.distribution}
        prefill, decode = (self._operators(ops) for ops in (built.context_ops, built.generation_ops))
        return [_experts_as(one, asked) for one in prefill], [_experts_as(one, asked) for one in decode]

    def collective(self, name: str, ranks: int) -> Operator:
        """A collective between so many devices, over x elements of two bytes; `all_reduce` is vLLM's, others NCCL's."""
        operations = _sdk("operations")
        if name == "all_reduce":
            return self._operators([operations.CustomAllReduce(name, 1, 1, ranks)])[0]
        half = _sdk("common").CommQuantMode.half
        spelled = name.replace("all_to_all", "alltoall")
        return self._operators([operations.NCCL(name, 1, spelled, 1, ranks, half)])[0]

    def answer(self, operator: Operator, **shape: int | bool) -> Answer:
        """One run at one shape (`EngineHandle.evaluate_ops_json`). Raises InputError for what it cannot answer."""
        engine = self._filled if operator.kind == "CustomAllReduce" else self._engine
        try:
            ((_, latency_ms, _, source),) = engine.evaluate_ops_json(operator.once, **shape)
        except Exception as error:  # plain exceptions of several kinds
            message = f"aiconfigurator has no {operator.name} at {shape} on {self.system} ({error})"
            raise InputError(message) from None
        return Answer(latency_ms / 1e3, source)

    def collected(self, table: str, columns: Sequence[str], **only: object) -> Ints:
        """Distinct values of some columns, in the rows in which others are as given, [n, columns], ascending.

        Tables of older versions know no window of attention; all their rows are without one.
        """
        distinct = self._only(table, only)[list(columns)].drop_duplicates()  # sorting all rows takes ten times as long
        return np.unique(distinct.to_numpy(dtype=np.int64), axis=0)

    def variants(self, table: str, columns: Sequence[str], **only: object) -> list[tuple[Any, ...]]:
        """The same, of columns of any type."""
        return sorted(set(self._only(table, only)[list(columns)].itertuples(index=False, name=None)))

    def _only(self, table: str, only: dict[str, object]) -> pd.DataFrame:
        rows = self._rows(table)
        for name, value in only.items():
            if name in rows or name != "window_size":
                rows = rows[rows[name] == value]
        return rows

    def names(self, table: str, column: str) -> list[str]:
        """Distinct texts of a column."""
        return sorted(self._rows(table)[column].unique())

    def _rows(self, table: str) -> pd.DataFrame:
        import pandas as pd

        if table not in self._read:
            self._read[table] = pd.read_parquet(self.file(table))
        return self._read[table]

    def file(self, table: str) -> Path:
        """The file that a table is read from. Raises InputError when there is none."""
        root = Path(self._database.systems_root) / self._database.system_spec["data_dir"]
        engine, version = BACKEND, self.version
        if table == "nccl_perf":
            engine, version = "nccl", self._database.system_spec["misc"]["nccl_version"]
        resolve = _sdk("operations.base").resolve_op_data_path
        path = Path(resolve(str(root), engine, version, f"{table}.parquet"))
        if table == "custom_allreduce_perf" and not path.exists():
            path = next(iter(self._earlier(root, table)), path)
        if not path.exists():
            raise InputError("was not collected", field=table, found=f"{self.system}, {engine} {version}")
        return path

    def _earlier(self, root: Path, table: str) -> list[Path]:
        """Files with which the package fills in, the newest first."""
        from aiconfigurator_core import resolve_op_sources_report_json

        systems_root = self._database.systems_root
        text = resolve_op_sources_report_json(systems_root, str(root), BACKEND, self.version, f"{table}.parquet", None)
        return [Path(record["path"]) for record in json.loads(text)["records"] if record["exists"]]

    def _operators(self, operators: Sequence[Any]) -> list[Operator]:
        engine = _sdk("engine")
        with _heard() as warnings:
            engine._resolve_attention_lane_orders(operators, self._database, None)
        self._warned(warnings)
        specs = [next(iter(spec.items())) for spec in json.loads(engine.build_ops_json(operators))]
        return [Operator(fields["name"], kind, fields) for kind, fields in specs]

    def _warned(self, warnings: Sequence[str]) -> None:
        self.warnings += [one for one in warnings if one not in self.warnings]

    @cached_property
    def _filled(self) -> Any:
        """The engine that takes an earlier version's file where this one has none."""
        if self.file("custom_allreduce_perf").parent.name == self.version:
            return self._engine
        return _loaded(self.system, self.version, fill_gaps=True)[1]


def _experts_as(operator: Operator, asked: dict[str, str]) -> Operator:
    """The operator, of the type and distribution asked for where it is that of the experts."""
    return replace(operator, fields={**operator.fields, **asked}) if operator.kind == "Moe" else operator


def systems() -> list[str]:
    """The package's names of devices on which it has vLLM's operators. Raises EngineError without the extra."""
    return sorted(file.stem for file in _systems_folder().glob("*.yaml") if has_system(file.stem))


def has_system(name: str) -> bool:
    """Whether a name is one of `systems`, most of which are not looked at for it. Raises EngineError as they do."""
    return (_systems_folder() / "data" / name / "gemm" / BACKEND).is_dir() and bool(_version_slots(name))


def current_version(system: str) -> str:
    """Version of vLLM that is taken on a system where none is named."""
    return _version_slots(system)["current"]


def product_types(system: str) -> list[str]:
    """Its names of the types in which matrix products were collected on a system, with the current version of vLLM."""
    import pyarrow.parquet as pq

    folder = _systems_folder() / "data" / system / "gemm" / BACKEND
    file = folder / current_version(system) / "gemm_perf.parquet"
    return sorted(set(pq.read_table(file, columns=["gemm_dtype"])["gemm_dtype"].unique().to_pylist()))


def _systems_folder() -> Path:
    return Path(_sdk("perf_database").__file__).parents[1] / "systems"


@cache
def _version_slots(system: str) -> dict[str, str]:
    """Versions of vLLM by the package's names of them, such as `current`; it would read a file for each answer."""
    return _sdk("perf_database").get_version_slots(system, BACKEND) or {}


def core_version() -> str:
    """The package's version. Raises EngineError without the extra."""
    _sdk("engine")
    return package_version(PACKAGE)


def _loaded(system: str, version: str, *, fill_gaps: bool) -> tuple[Any, Any, list[str]]:
    """Its database of a system, the engine that answers from it, and what it warned of."""
    with _heard() as warnings:
        database = _sdk("perf_database").get_database(system, BACKEND, version, shared_layer=fill_gaps)
        return database, _sdk("engine").EngineHandle.for_database(database), warnings


def _sdk(name: str) -> Any:
    """A module of the package. Raises EngineError without the extra."""
    try:
        return import_module(f"aiconfigurator_core.sdk.{name}")
    except ImportError:
        raise EngineError(f"aiconfigurator's tables need the extra: {installs('aiconfigurator')}") from None


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the package warns of meanwhile, in place of its printing it; but for tables that nothing here reads."""
    log, heard = logging.getLogger("aiconfigurator_core"), _Listener()
    propagates, log.propagate = log.propagate, False
    log.addHandler(heard)
    try:
        yield heard.said
    finally:
        log.removeHandler(heard)
        log.propagate = propagates


class _Listener(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one, unless it is of a table (MLA, DSA) of models that are not read here."""
        text = record.getMessage()
        if ".parquet" not in text or any(f"{table}.parquet" in text for table in TABLES):
            self.said.append(f"aiconfigurator-core says: {text}")
