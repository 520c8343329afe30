"""Which requests compute how many tokens in a step: vLLM's rules, and the means to hold them against vLLM's own."""
