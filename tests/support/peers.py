"""What a comparison of peers needs besides engines: shared facts, and a peer that is none."""

from cgbench.engines.peer_rows import Round, SharedFacts

FACTS = SharedFacts(
    command="cgbench peers preset:tiny",
    model="preset:tiny (random weights)",
    head="mimo (random weights)",
    dtype="bfloat16",
    attention="triton",
    compile="off",
    acceptance="synthetic:0.8",
    spec_tokens=1,
    batch_size=2,
    context_len=8,
    new_tokens=16,
    notes=[],
    environment={"gpu": None, "cpu": "a CPU", "torch": "2.13.0", "transformers": "5.23.0"},
)


class Recorded:
    """A peer that notes when it is asked, and may fail."""

    def __init__(self, name: str, log: list[str], fails_at: int | None = None) -> None:
        self.name, self.log, self.fails_at = name, log, fails_at

    def round(self, seed: int) -> Round:
        self.log.append(f"{self.name}{seed}")
        if len([each for each in self.log if each[0] == self.name[0]]) == self.fails_at:
            raise ValueError("a cause\nand its trace")
        return Round(seconds=0.5, steps=10, tokens=20.0)
