"""Where KV is kept: the engine's paged cache, and the tiers behind it."""
