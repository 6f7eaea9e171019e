"""An engine's own size functions, taken out of its wheel and run with stand-ins."""
