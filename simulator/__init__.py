"""An engine made of a scheduler, a KV cache and a step-time model; it turns a trace into a capture."""
