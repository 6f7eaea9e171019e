"""What was asked: typed, checked, and recorded. No torch here."""
