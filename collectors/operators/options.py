"""What `collectors.operators` is asked to measure."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collectors.operators.shots import Limits
from profiles.model import DTYPE_BYTES, ModelSpec
from traces.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, checked.

    Attributes:
        model: folder with config.json; weights are not read.
        model_name: the name scenarios will use.
        out: profile folder to write.
        device: the device's name in scenarios; None: as it names itself.
        budget_s: seconds for all passes over the shots.
        engine: whose kernels, `vllm` or `torch`.
        operators: `modules`, or `none` for whole steps alone.
        timer: `hooks` or `profiler`; see `collectors.operators.timers`.
        compiled: whole steps as served, with torch.compile and CUDA graphs, and not eager.
        collectives: `auto`, `none`, or devices as `cpu:2`; see `collectors.operators.collectives`.
        tensor_parallel: degrees to measure, each on one device that computes one rank's share.
        dtype: of weights and activations.
        kv_cache_dtype: of the KV cache; auto: as dtype.
        max_tokens: tokens of the longest prefill chunk.
        max_requests: requests of the largest batch.
        max_kv: tokens of the longest history.
        kv_cache_tokens: batches that hold more are left out.
        block_size: tokens of a KV block.
    """

    model: Path
    model_name: str
    out: Path
    device: str | None = None
    budget_s: float = 170.0
    engine: str = "vllm"
    operators: str = "modules"
    timer: str = "hooks"
    compiled: bool = False
    collectives: str = "auto"
    tensor_parallel: tuple[int, ...] = (1,)
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    max_tokens: int = 512
    max_requests: int = 32
    max_kv: int = 2048
    kv_cache_tokens: int = 67_584
    block_size: int = 32

    def __post_init__(self) -> None:
        """Raise InputError for options that cannot go together."""
        for name in ("max_tokens", "max_requests", "max_kv", "kv_cache_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise InputError(field=_flag(name), found=getattr(self, name), accepted="a whole number above 0")
        degrees = self.tensor_parallel
        if not degrees or min(degrees) < 1 or len(set(degrees)) < len(degrees):
            accepted = "whole numbers above 0, none twice"
            raise InputError(field="--tensor-parallel", found=degrees, accepted=accepted)
        if self.compiled and self.operators != "none":
            accepted = "--operators none: compiled graphs call no module hooks"
            raise InputError(field="--compiled", found=f"--operators {self.operators}", accepted=accepted)
        if self.engine == "torch" and self.compiled:
            raise InputError(field="--compiled", found="--engine torch", accepted="--engine vllm")
        if self.engine == "torch" and self.kv_cache_dtype != "auto":
            raise InputError(field="--kv-cache-dtype", found=self.kv_cache_dtype, accepted="auto with --engine torch")
        if self.operators == "none" and self.timer != "hooks":
            raise InputError(field="--timer", found=self.timer, accepted="none of it with --operators none")

    @property
    def kv_dtype(self) -> str:
        """Type of the KV cache's numbers."""
        return self.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @property
    def steps_only(self) -> bool:
        """Whether operators are left out."""
        return self.operators == "none"

    def limits(self, model: ModelSpec) -> Limits:
        """How far the grid reaches. Raises InputError when the model does not reach so far."""
        longest, most = self.max_kv + self.max_tokens + 1, model.max_position_embeddings
        if most is not None and longest > most:
            accepted = f"together at most {most - 1}, below the model's max_position_embeddings"
            raise InputError(field="--max-kv and --max-tokens", found=longest - 1, accepted=accepted)
        return Limits(
            max_tokens=self.max_tokens,
            max_requests=self.max_requests,
            max_kv_tokens=self.max_kv,
            block_size=self.block_size,
            kv_blocks=-(-self.kv_cache_tokens // self.block_size),
            top_k=model.num_experts_per_tok,
            num_experts=model.num_experts,
        )

    def identity(self) -> dict[str, Any]:
        """What tells this measurement from another, by the command line's names; where it is written does not."""
        return {_flag(name): str(value) for name, value in asdict(self).items() if name not in ("out", "model")}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(arguments: list[str] | None = None, description: str | None = None) -> Options:
    """Options from a command line. Raises InputError; an unknown option ends the process with 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = {name: field.default for name, field in Options.__dataclass_fields__.items()}
    parser.add_argument("--model", type=Path, required=True, help="model folder; its weights are not read")
    parser.add_argument("--model-name", required=True, help="the name scenarios will use")
    parser.add_argument("--out", type=Path, required=True, help="profile folder to write, new or empty")
    parser.add_argument("--device", help="the device's name in scenarios; default: as it names itself")
    parser.add_argument("--budget-s", type=float, help="seconds for all passes, the engine's start not counted")
    parser.add_argument("--engine", choices=("vllm", "torch"), help="whose kernels; torch: plain PyTorch's")
    parser.add_argument("--operators", choices=("modules", "none"), help="none: whole steps alone, on any backend")
    parser.add_argument("--timer", choices=("hooks", "profiler"), help="profiler: torch's, for tiny kernels")
    parser.add_argument("--compiled", action="store_true", help="with --operators none: as served, not eager")
    parser.add_argument("--collectives", metavar="auto|none|cpu:N|cuda:N", help="auto: where there are several GPUs")
    parser.add_argument("--tensor-parallel", type=int, nargs="+", help="degrees; a rank's share is measured alone")
    parser.add_argument("--dtype", choices=[name for name in DTYPE_BYTES if name != "fp8"], help="of the weights")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), help="auto: as --dtype")
    parser.add_argument("--max-tokens", type=int, help="tokens of the longest prefill chunk")
    parser.add_argument("--max-requests", type=int, help="requests in the largest batch")
    parser.add_argument("--max-kv", type=int, help="tokens of the longest history")
    parser.add_argument("--kv-cache-tokens", type=int, help="batches that hold more are left out")
    parser.add_argument("--block-size", type=int, help="tokens of a KV block")
    parser.set_defaults(
        **{name: value for name, value in default.items() if name not in ("model", "model_name", "out")}
    )
    chosen = vars(parser.parse_args(arguments))
    return Options(**{**chosen, "tensor_parallel": tuple(chosen["tensor_parallel"])})
