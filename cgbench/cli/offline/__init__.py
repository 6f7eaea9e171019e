"""These commands read run directories and load no model themselves."""
