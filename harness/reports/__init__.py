"""What a reader opens: HTML pages, timelines, figures, tables."""
