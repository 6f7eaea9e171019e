"""The floors' accounts in ``run.json``. No torch, no pandas."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cgbench.errors import RunDirectoryError
from cgbench.floor.account import Account, FloorLine
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import LARGEST


def accounts_of(record: RunRecord) -> list[Account]:
    """The accounts of a run, in the order of their batch sizes' measurement."""
    return [Account.from_dict(raw) for raw in record.floor.get("accounts", [])]


def keep_accounts(record: RunRecord, batch_size: int, accounts: Sequence[Account]) -> None:
    """Put in those of one batch size, in place of an earlier, unfinished try's."""
    others = [each for each in accounts_of(record) if each.batch_size != batch_size]
    record.floor["accounts"] = [each.to_dict() for each in (*others, *accounts)]


def check_accounts(record: RunRecord, file: Path) -> None:
    """Refuse accounts that ``accounts_of`` could not read, or that no tables could be made of.

    Raises ``RunDirectoryError``, naming ``file``, the ``run.json`` that ``record`` is from.
    """
    accounts = record.floor.get("accounts", [])
    if accounts and "limits" not in record.floor:
        raise RunDirectoryError(f"{file}: field floor.limits is missing")
    for i, raw in enumerate(accounts):
        try:
            wrong = next(_wrong_parts(Account.from_dict(raw)), None)
        except (TypeError, KeyError, ValueError):
            wrong = "its parts"
        if wrong is not None:
            raise RunDirectoryError(f"{file}: field floor.accounts[{i}] is not an account: {wrong}")


def _wrong_parts(account: Account) -> Iterator[str]:
    """Names of parts that are of another type or sign than their class declares."""
    parts: list[Account | FloorLine] = [account, *account.lines]
    for part in parts:
        for each in fields(part):
            if not _fits(getattr(part, each.name), each.type):
                yield each.name


def _fits(value: Any, declared: Any) -> bool:
    if declared in (int, float):
        return type(value) in (int, declared) and 0 <= value <= LARGEST * LARGEST
    return declared is not str or isinstance(value, str)
