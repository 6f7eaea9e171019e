"""Draft heads: their families, wiring, names in files, and the module itself."""
