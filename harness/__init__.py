"""The command line: scenarios, validation and reports over everything below."""
