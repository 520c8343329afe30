"""Readers of runs that load generators measured: one module per tool, all of them the client's view."""
