from tests.support.fixtures import few_blocks, one_commit, prompts, tiny

__all__ = ["few_blocks", "one_commit", "prompts", "tiny"]
