"""Tests that need a real vLLM; a machine that does other things may make anything late, and nothing wrong."""

from __future__ import annotations

from traces.capture import Capture


def faults(capture: Capture) -> list[str]:
    """Why a capture may not be scored, but for a client that was late."""
    return [reason for reason in capture.meta.reasons if not reason.startswith("the client was the bottleneck")]
