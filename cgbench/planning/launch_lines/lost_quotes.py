"""Recognise a value whose quotes a shell or a word processor took."""

import re

CURE = "Put the line into a file, with its JSON in '..', and give --from \"$(cat FILE)\""

_CURLY = re.compile("[\u2018-\u201f\u2032\u2033]")
_BARE_KEY = re.compile(r"\{\s*[A-Za-z_][\w.-]*\s*:")
_BARE_LIST = re.compile(r"\[\s*[A-Za-z_./-]")


def lost_quotes(text: str) -> str:
    """Return a clause on the quotes that ``text`` lacks, to end an error with, or no text.

    JSON without a double quote passed a shell that removed them. Curly quotes are a word
    processor's.
    """
    if found := _CURLY.search(text):
        return f". Its quotes are curly ({found[0]}). Type plain ones"
    is_bare = _BARE_KEY.match(text.strip()) or _BARE_LIST.match(text.strip())
    return f". The shell took its double quotes. {CURE}" if is_bare and '"' not in text else ""
