from tests.support.fixtures import one_commit, prompts, tiny

__all__ = ["one_commit", "prompts", "tiny"]
