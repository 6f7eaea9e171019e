"""Commands that read run directories and load no model themselves."""
