"""Sends a trace to an OpenAI-compatible server and keeps what it answered, token by token."""
