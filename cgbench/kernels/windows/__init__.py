"""What a module past a draft head's first is fed, as torch defines it and as one kernel."""
