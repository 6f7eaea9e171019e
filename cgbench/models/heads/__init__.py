"""Define draft heads: their families, their wiring, their names in files, and the module itself."""
