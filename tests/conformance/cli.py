"""servetwin's command line, to be run where vllm is installed (tests/conformance/engine.py)."""

from __future__ import annotations

from harness.cli import main

if __name__ == "__main__":
    main()
