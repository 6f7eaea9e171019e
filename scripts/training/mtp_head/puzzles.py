"""Small programming exercises, put together from parts: what is taken, of what, and how."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mtp_head.functions import head_code

NUMBER_FILTERS = {
    "even": "even",
    "odd": "odd",
    "positive": "positive",
    "negative": "negative",
    "nonzero": "non-zero",
    "unique": "distinct",
    "repeated": "repeated",
    "prime": "prime",
    "square": "perfect square",
    "above_limit": "greater than limit",
    "below_limit": "less than limit",
    "multiple": "divisible by limit",
    "two_digit": "two-digit",
    "palindromic": "palindromic",
}
NUMBER_RESULTS = {
    "sum": ("int", "the sum of"),
    "product": ("int", "the product of"),
    "count": ("int", "how many there are of"),
    "largest": ("Optional[int]", "the largest of"),
    "smallest": ("Optional[int]", "the smallest of"),
    "average": ("float", "the average of"),
    "sorted": ("List[int]", "in ascending order,"),
    "reversed": ("List[int]", "in reverse order,"),
    "running_total": ("List[int]", "the running totals of"),
    "indices": ("List[int]", "the indices of"),
    "squares": ("List[int]", "the squares of"),
    "first": ("Optional[int]", "the first of"),
    "last": ("Optional[int]", "the last of"),
    "second_largest": ("Optional[int]", "the second largest of"),
    "differences": ("List[int]", "the differences between neighbours among"),
}
TEXT_FILTERS = {
    "vowels": "vowels",
    "consonants": "consonants",
    "digits": "digits",
    "uppercase": "uppercase letters",
    "lowercase": "lowercase letters",
    "words": "words",
    "long_words": "words longer than size",
    "short_words": "words shorter than size",
    "capitalised_words": "words that start with a capital letter",
    "lines": "lines",
    "punctuation": "punctuation marks",
    "sentences": "sentences",
}
TEXT_RESULTS = {
    "count": ("int", "how many there are of"),
    "remove": ("str", "the text without"),
    "reverse": ("str", "the text with the order reversed of"),
    "collect": ("List[str]", "a list of"),
    "frequency": ("Dict[str, int]", "a dictionary with the frequencies of"),
    "first": ("Optional[str]", "the first of"),
    "longest": ("Optional[str]", "the longest of"),
    "unique": ("List[str]", "without repetition,"),
    "swap_case": ("str", "the text after swapping the case of"),
    "join": ("str", "separated by commas,"),
    "positions": ("List[int]", "the positions of"),
    "double": ("str", "the text after doubling"),
}
ENDINGS = (
    "",
    " Return None if there are none.",
    " The input may be empty.",
    " Raise ValueError for invalid input.",
    " The input must not be modified.",
)


@dataclass(frozen=True)
class _Kind:
    filters: dict[str, str]
    results: dict[str, tuple[str, str]]
    argument: str
    annotation: str
    extra: str
    whole: str


KINDS = (
    _Kind(NUMBER_FILTERS, NUMBER_RESULTS, "numbers", "List[int]", "limit", "in the list"),
    _Kind(NUMBER_FILTERS, NUMBER_RESULTS, "values", "Tuple[int, ...]", "limit", "in the tuple"),
    _Kind(NUMBER_FILTERS, NUMBER_RESULTS, "grid", "List[List[int]]", "limit", "in the grid"),
    _Kind(TEXT_FILTERS, TEXT_RESULTS, "text", "str", "size", "in the given text"),
    _Kind(TEXT_FILTERS, TEXT_RESULTS, "lines", "List[str]", "size", "in all the strings"),
)


def puzzles(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(name, docstring, code) of every combination, in the form of ``function_heads``."""
    for kind in KINDS:
        for filter_name, things in kind.filters.items():
            for result_name, (returned, what) in kind.results.items():
                name = f"{result_name}_{filter_name}"
                arguments = f"{kind.argument}: {kind.annotation}"
                if kind.extra in things or things == "divisible by limit":
                    arguments += f", {kind.extra}: int"
                doc = f"Return {what} {noun(things, kind)} {kind.whole}.{rng.choice(ENDINGS)}"
                yield name, doc, head_code(name, f"({arguments}) -> {returned}", doc)


def noun(things: str, kind: _Kind) -> str:
    """The things with the noun they describe: adjectives go before it, comparisons after."""
    if kind.filters is TEXT_FILTERS:
        return f"the {things}"
    return f"the numbers {things}" if "limit" in things else f"the {things} numbers"
