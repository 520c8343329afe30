"""Simulated against measured: paired, by distribution, by stage, over time and step by step."""
