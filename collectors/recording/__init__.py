"""A recording, from the first journal to the capture that its witnesses are joined into."""
