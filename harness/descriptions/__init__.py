"""What a user writes down: scenarios, clusters and their parts, as typed values."""
