"""Compare the wirings of a draft head: rewire it, draft from fixed places, judge what is kept."""
