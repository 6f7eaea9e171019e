"""This package runs the decode layers through ``torch.compile``: operators, patterns and fusion."""
