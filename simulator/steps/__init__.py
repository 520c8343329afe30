"""How long a step takes: operators, experts, what ranks exchange, and what stands beside them."""
