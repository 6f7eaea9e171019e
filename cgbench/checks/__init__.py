"""The audit: does what is timed also answer right? Checks with answers, figures and evidence."""
