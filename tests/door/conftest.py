from tests.support.fixtures import few_blocks, prompts, tiny

__all__ = ["few_blocks", "prompts", "tiny"]
