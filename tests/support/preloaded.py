"""The fork server imports this, and by it all that forked processes share."""

from importlib import import_module

from tests.support.collector import all_stays

with all_stays():
    from tests.support.forkserver import PRELOADED

    for name in PRELOADED:
        import_module(name)
