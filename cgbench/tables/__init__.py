"""The tables write results for people: in the terminal, as Markdown, as JSON, and as a page."""
