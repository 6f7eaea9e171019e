"""What a run leaves behind: columns, files and tables. No torch, so it answers at once anywhere."""
