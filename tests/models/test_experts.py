"""Long prompts go through a mixture's experts in chunks."""

import pytest
import torch

from cgbench.models import experts
from cgbench.models.experts import apply_in_chunks
from tests.support.mixtures import make_block


@pytest.mark.parametrize("kind", ["qwen3_moe", "glm4_moe", "gpt_oss"])
@pytest.mark.parametrize("num_tokens", [1, 16, 17, 100])
def test_chunks_are_no_larger_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, num_tokens: int
) -> None:
    block = make_block(kind)
    own = type(block.experts)
    real, sizes = own.forward, []

    def forward(self: torch.nn.Module, hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return real(self, hidden, *rest)

    monkeypatch.setattr(own, "forward", forward)
    monkeypatch.setattr(experts, "TOKENS_A_CHUNK", 16)
    x = torch.randn(1, num_tokens, 32)
    expected = block(x)
    sizes.clear()
    apply_in_chunks(block)
    apply_in_chunks(block)
    torch.testing.assert_close(block(x), expected)
    assert max(sizes) <= 16 and sum(sizes) == num_tokens
    assert isinstance(block.experts, own)
