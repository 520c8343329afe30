"""A server of one's own on this machine, and a model small enough for it."""
