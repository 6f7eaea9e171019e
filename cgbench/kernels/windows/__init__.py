"""Prepare what a module past a draft head's first is fed, in torch and as one kernel."""
