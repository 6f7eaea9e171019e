"""``cgbench report`` shows runs as one page that opens offline, and the same as Markdown."""
