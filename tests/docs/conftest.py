from tests.support.fixtures import prompts, tiny

__all__ = ["prompts", "tiny"]
