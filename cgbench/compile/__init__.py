"""The decode layers through ``torch.compile``: operators, patterns and fusion."""
