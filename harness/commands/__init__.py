"""Groups of commands: each parses, calls the function that does the work, prints, and exits."""
