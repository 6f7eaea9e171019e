"""Audits of servers: sound ones, broken ones, and those of other engines."""
