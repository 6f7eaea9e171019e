"""Triton's interpreter without the work that it repeats or drops: a third of its time is left.

For the server of ``run_interpreted``, which imports this. What kernels compute stays as it is.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter

_launch = interpreter.GridExecutor.__call__
_patch_lang = interpreter._patch_lang
_np_dtype = interpreter._get_np_dtype
_of_number = cache(_np_dtype)
_patched: set[frozenset[str]] = set()
"""The languages that functions of the launch under way have had patched."""


def _launch_anew(self: Any, *args: Any, **kwargs: Any) -> None:
    """Triton undoes its patches after a launch, so each launch begins with none."""
    _patched.clear()
    _launch(self, *args, **kwargs)


def _patch_once(function: Any) -> Any:
    """Every call of a function by a kernel would patch the whole language again."""
    languages = frozenset(
        value.__name__
        for value in function.__globals__.values()
        if value is language or value is language.core
    )
    if languages in _patched:
        return None
    _patched.add(languages)
    return _patch_lang(function)


def _dtype_in_numpy(of: Any) -> Any:
    """Every operation would make the whole dictionary of types again."""
    scalar = of.scalar
    return _np_dtype(scalar) if scalar.is_ptr() else _of_number(scalar)


interpreter.GridExecutor.__call__ = _launch_anew
interpreter._patch_lang = _patch_once
interpreter._get_np_dtype = _dtype_in_numpy
_options = interpreter.interpreter_builder.options
# Sums are made in 64 bits too, for an assertion that only debugging makes.
assert not _options.debug
interpreter.interpreter_builder.options = replace(_options, sanitize_overflow=False)
