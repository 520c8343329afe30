"""What a real engine did: a client, a step recorder and an operator profiler, joined into a capture."""
