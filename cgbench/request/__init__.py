"""A request is what was asked: typed, checked, and recorded. No torch here."""
