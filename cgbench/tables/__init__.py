"""What people read: tables for the terminal and Markdown. No torch here."""
