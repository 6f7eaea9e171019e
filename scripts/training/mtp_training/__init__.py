"""What every training of an MTP head shares, whoever made the target and the text.

`chain` runs the head over whole sequences, `losses` holds its chain against the target, `optimise`
is the loop, `model` puts target and head together, `drafts` decodes known text again, and
`acceptance` sums it up.
"""
