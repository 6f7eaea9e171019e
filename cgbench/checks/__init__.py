"""The audit: does what is timed also answer right? Checks with verdicts, figures and evidence."""
