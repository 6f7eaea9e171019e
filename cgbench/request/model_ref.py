"""Define what MODEL may name: the shipped model, a preset, a folder or a hub id."""

from pathlib import Path

DEFAULT_MODEL = "default"
PRESET_PREFIX = "preset:"
DEFAULT_MODEL_DIR = Path(__file__).parents[1] / "models" / "default"


def preset_name(ref: str) -> str | None:
    """Return the preset that a model reference names, or None for a checkpoint."""
    return ref.removeprefix(PRESET_PREFIX) if ref.startswith(PRESET_PREFIX) else None
