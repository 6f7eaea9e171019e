"""Find what is wrong with the floors' accounts in ``run.json``. There is no torch and no pandas
here.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from cgbench.floor.account import Account, FloorLine
from cgbench.inputs import JsonObject
from cgbench.rundir.schema import LARGEST


def account_faults(floor: JsonObject) -> Iterator[str]:
    """Yield what is wrong with the accounts in a record's ``floor``: those that cannot be read, or
    that no tables can be made of.
    """
    accounts = floor.get("accounts", [])
    if accounts and "limits" not in floor:
        yield "field floor.limits is missing"
    for i, raw in enumerate(accounts):
        try:
            wrong = next(_wrong_parts(Account.from_dict(raw)), None)
        except (TypeError, KeyError, ValueError):
            wrong = "its parts"
        if wrong is not None:
            yield f"field floor.accounts[{i}] is not an account: {wrong}"


def _wrong_parts(account: Account) -> Iterator[str]:
    """Yield the names of parts that are of another type or sign than their class declares."""
    parts: list[Account | FloorLine] = [account, *account.lines]
    for part in parts:
        for each in fields(part):
            if not _fits(getattr(part, each.name), each.type):
                yield each.name


def _fits(value: Any, declared: Any) -> bool:
    if declared in (int, float):
        return type(value) in (int, declared) and 0 <= value <= LARGEST * LARGEST
    return declared is not str or isinstance(value, str)
