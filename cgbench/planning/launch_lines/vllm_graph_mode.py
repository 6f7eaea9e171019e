"""Work out which graphs vLLM's line leaves: its eager switch, optimization level and modes."""

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject, shown
from cgbench.planning.launch_lines.option_reader import Options
from cgbench.planning.plan_request import CaptureMode

COMPILATION = "--compilation-config"

_MODES = {
    "NONE": CaptureMode.NONE,
    "PIECEWISE": CaptureMode.PIECES,
    "FULL_DECODE_ONLY": CaptureMode.DECODE_ONLY,
    "FULL_AND_PIECEWISE": CaptureMode.FULL,
}

_LEVELS = {str(n): n for n in range(4)} | {f"o{n}": n for n in range(4)}

_COMPILATION_MODES = ("NONE", "STOCK_TORCH_COMPILE", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE")


def graph_mode(options: Options, compilation: JsonObject) -> CaptureMode:
    """Return the graphs that are left of what the line asks for.

    Raise ``BadInputError`` for a level or a mode that the planner does not know.
    """
    level = _level(options)
    if options.is_on("--enforce-eager"):
        return CaptureMode.NONE
    compiled = compilation.get("mode")
    mode = _COMPILATION_MODES[0 if level == 0 else 3] if compiled is None else _compiled(compiled)
    return _as_compiled(mode, _asked(compilation.get("cudagraph_mode"), level))


def _level(options: Options) -> int:
    """Return the optimization level, -O0 to -O3. The default is 2."""
    text = options.text("--optimization-level") or "2"
    if text.lower() not in _LEVELS:
        raise BadInputError(f"--optimization-level {shown(text)}: must be 0, 1, 2 or 3")
    return _LEVELS[text.lower()]


def _compiled(value: object) -> str:
    names = {str(n): name for n, name in enumerate(_COMPILATION_MODES)}
    name = names.get(str(value), str(value).upper())
    if name not in _COMPILATION_MODES:
        raise BadInputError(
            f"{COMPILATION} mode {shown(str(value))}: must be 0 to 3, or one of "
            f"{', '.join(_COMPILATION_MODES)}"
        )
    return name


def _as_compiled(mode: str, asked: CaptureMode) -> CaptureMode:
    """Return the graphs that the compilation mode allows.

    Pieces need vLLM's own compilation, and torch's alone has no graphs.
    """
    if mode == "STOCK_TORCH_COMPILE":
        return CaptureMode.NONE
    if mode == "VLLM_COMPILE":
        return asked
    without = {CaptureMode.FULL: CaptureMode.DECODE_ONLY, CaptureMode.PIECES: CaptureMode.NONE}
    return without.get(asked, asked)


def _asked(given: object, level: int) -> CaptureMode:
    """Return the mode that is asked for, or the one that the optimization level sets."""
    if given is None:
        return (CaptureMode.NONE, CaptureMode.PIECES, CaptureMode.FULL, CaptureMode.FULL)[level]
    name = str(given).upper()
    if name not in _MODES:
        raise BadInputError(
            f"{COMPILATION} cudagraph_mode {shown(str(given))}: is not planned. It must be one of "
            f"{', '.join(_MODES)}"
        )
    return _MODES[name]
