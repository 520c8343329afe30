"""How long attention takes in a memory that computes: a line over the tokens of a request, by the device's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from profiles.model import ModelSpec
from traces.decoding import decode_yaml
from traces.errors import InputError, nearest

BUNDLED_RATES = Path(__file__).parent / "bundled" / "near_memory.yaml"


class AttentionRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer's attention of one decode on one channel alone, with 16-bit keys and values.

    Attributes:
        request_s: at no history.
        token_s: for each token of history.
        num_heads: query heads of the model that this is said of.
        head_dim: width of its heads.
    """

    request_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    token_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    num_heads: Annotated[int, msgspec.Meta(ge=1)]
    head_dim: Annotated[int, msgspec.Meta(ge=1)]

    def scaled(self, model: ModelSpec, kv_bytes: float = 2.0) -> AttentionRate:
        """The same for another model, and for keys and values of so many bytes each: by what is read.

        Each query head reads the keys and values of its group by itself, since a bank has no cache to keep them in:
        so does the reference's own rule for other group sizes (`slope * G / 4`). A token's are read in as much less
        time as they have less bytes. Nobody has measured either.
        """
        width = (model.num_heads * model.head_dim) / (self.num_heads * self.head_dim)
        return AttentionRate(
            request_s=self.request_s * width,
            token_s=self.token_s * width * (kv_bytes / 2.0),
            num_heads=model.num_heads,
            head_dim=model.head_dim,
        )


class _RatesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rates: dict[str, AttentionRate]


def find_rate(name: str) -> AttentionRate:
    """The rate of a device whose timing file has this name. Raises InputError for one that nobody has told."""
    rates = decode_yaml(BUNDLED_RATES, _RatesFile).rates
    if name not in rates:
        accepted = f"request_s and token_s of {name}, which its timing does not tell; known are {nearest('', rates)}"
        raise InputError("is missing", field="attention", accepted=accepted)
    return rates[name]
