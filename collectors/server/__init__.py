"""What a running server tells to whoever listens: its metrics, its options, its spans, its cache events."""
