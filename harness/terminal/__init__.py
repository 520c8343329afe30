"""What a person sees in the terminal: tables, facts, progress, and figures in words."""
