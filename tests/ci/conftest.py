from tests.cli.conftest import prompts, tiny

__all__ = ["prompts", "tiny"]
