"""Readers of other tools' traces: one module per family of formats, each a generator of rows."""
