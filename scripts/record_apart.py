"""Record prefill and decode apart: two CPU engines of vLLM, a core each, with KV over NIXL, one load twice.

    scripts/install_engine.sh .venv-engine
    .venv-engine/bin/pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1     # 69 MB to fetch, 240 MB installed
    .venv/bin/python scripts/record_apart.py --out captures                 # about 5 minutes

The machine should do nothing else meanwhile. Both recordings serve the same requests at the same times.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

import numpy as np

from collectors.client.load import Pacing
from collectors.client.request import Target
from collectors.host import cpu_name
from collectors.local.pair import Pair, local_pair
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from collectors.recording.folder import About
from collectors.recording.replay import replay
from traces.trace import Trace, TraceRow

ROOT = Path(__file__).resolve().parents[1]
KV_BYTES = 256 << 20
FLAGS = (
    *("--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "4096"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "512", "--block-size", "32"),
    *("--kv-cache-memory-bytes", str(KV_BYTES), "--no-enable-prefix-caching"),
)
WARM_UP = 4
"""The first transfers agree on the connection."""


def load(n: int) -> Trace:
    """Prompts from 40 to 2,000 tokens, evenly in their logarithm, one every 1.3 s on the average."""
    rng = np.random.default_rng(7)
    prompts = np.exp(rng.uniform(np.log(40), np.log(2000), n)).astype(int)
    arrivals_s = np.concatenate([[0.0], np.cumsum(rng.exponential(1.3, n - 1))])
    rows = [
        TraceRow(
            request_id=str(i),
            arrival_s=round(float(arrival_s), 6),
            prompt_tokens=int(prompt),
            output_tokens=int(output),
        )
        for i, (arrival_s, prompt, output) in enumerate(zip(arrivals_s, prompts, rng.integers(8, 60, n), strict=True))
    ]
    return Trace(tuple(rows), None, "scripts/record_apart.py", "sha256:none")


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for apart-1 and apart-2")
    parser.add_argument("--nixl", type=Path, help="a folder that NIXL is installed in, if not the engine's environment")
    parser.add_argument("--requests", type=int, default=70)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    python = ROOT / ".venv-engine" / "bin" / "python"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_small_model(folder / "model", "s")
        with local_pair(python, model, folder, flags=FLAGS, nixl=options.nixl) as pair:
            for number in (1, 2):
                record(pair, number, options.requests, options.out / f"apart-{number}")


def record(pair: Pair, number: int, n_requests: int, out: Path) -> None:
    """Send the load once, and write the capture."""
    about = About(
        model="servetwin/llama-s",
        device="AMD-EPYC-2vCPU",
        recorded_at=datetime.date.today().isoformat(),
        steps=str(pair.steps),
        transfers=str(pair.transfers),
        notes=(
            f"scripts/record_apart.py on {cpu_name()}; random weights; two engines, bound to a core each, "
            "server processes and client on 2 vCPUs; KV by NixlConnector over shared memory",
        ),
    )
    target = Target(pair.url, "model", vocab_size=VOCAB_SIZE, seed=number)
    capture = replay(load(n_requests), target, Pacing(warm_up=WARM_UP), about, out)
    print(out, capture.meta.reasons or "valid", flush=True)


if __name__ == "__main__":
    main()
