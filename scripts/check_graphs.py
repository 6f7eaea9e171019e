"""Are the graphs' tokens right? Every bucket from 1 to 64, against eager and plain greedy decoding.

In float32 every scope must give plain greedy decoding's tokens. In bfloat16 the sums of a batch of
64 are rounded otherwise than those of one request, so the first token that differs must be a
near-tie: the margin between the two candidates' logits, in transformers' own forward, is printed
beside the noise that this forward itself has (its two attention implementations against each
other). Eager and graphs run the same kernels at a bucket's own size: there they must be equal.

    python scripts/check_graphs.py --output results/FOLDER/graph_equality.md
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cgbench.cli.head_flags import wiring
from cgbench.engine.attention import resolve_backend
from cgbench.engine.generate import generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import Runner
from cgbench.measure import setup
from cgbench.measure.bench import Bench, capture_all
from cgbench.models.checkpoint import read_config
from cgbench.models.request import DEFAULT_MODEL_DIR
from cgbench.report.schema import Scope

MAX_BATCH = 64
MAX_NEW_TOKENS = 64
SPEC_TOKENS = 3

# A near-tie: the candidates are closer than the forward's own noise, counted on both of them.
NEAR_TIE_NOISES = 2

HEADING = """\
# Graph tokens against eager and plain greedy decoding

`python scripts/check_graphs.py`: default model, k = {k}, {new} new tokens, {gpu}, torch {torch}.
"equal" counts requests whose tokens are the same to the last.
"""


@dataclass
class Tally:
    """Requests of one (dtype, scope), over all buckets."""

    requests: int = 0
    equal_to_eager: int = 0
    equal_to_plain: int = 0
    margins: list[float] = field(default_factory=list)


@dataclass
class Plain:
    """transformers alone: greedy tokens, and the logits that first differences are judged by."""

    model: PreTrainedModel
    prompts: list[list[int]]
    tokens: list[list[int]]
    noise: float

    def margin(self, request: int, tokens: list[int]) -> float:
        """How far apart the two candidates are at the first difference; 0 where there is none."""
        pairs = zip(tokens, self.tokens[request], strict=False)
        differing = [i for i, (ours, theirs) in enumerate(pairs) if ours != theirs]
        if not differing:
            return 0.0
        first = differing[0]
        prefix = self.prompts[request] + self.tokens[request][:first]
        logits = next_logits(self.model, prefix)
        return (logits[self.tokens[request][first]] - logits[tokens[first]]).abs().item()


@torch.inference_mode()
def next_logits(model: PreTrainedModel, prefix: list[int]) -> torch.Tensor:
    return model(torch.tensor([prefix], device=model.device)).logits[0, -1].float()


def load_plain(dtype: torch.dtype, attention: str) -> PreTrainedModel:
    ref = str(DEFAULT_MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(
        ref, config=read_config(ref), dtype=dtype, attn_implementation=attention
    )
    return model.to("cuda").eval()


def make_plain(dtype: torch.dtype, prompts: list[list[int]], eos: tuple[int, ...]) -> Plain:
    model, other = load_plain(dtype, "sdpa"), load_plain(dtype, "eager")
    tokens = [greedy(model, prompt, eos) for prompt in prompts]
    noise = max(
        (next_logits(model, prompt) - next_logits(other, prompt)).abs().max().item()
        for prompt in prompts
    )
    return Plain(model, prompts, tokens, noise)


def greedy(model: PreTrainedModel, prompt: list[int], eos: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=list(eos),
        pad_token_id=eos[0],
    )
    return out[0, len(prompt) :].tolist()


def make_bench(dtype: str) -> Bench:
    arguments = {
        "model": "default",
        "spec_tokens": [SPEC_TOKENS],
        "batch_sizes": [MAX_BATCH],
        "max_num_seqs": MAX_BATCH,
        "scopes": list(Scope),
        "policy": "scaled",
        "capture_sizes": [],
        "capture_unit": "requests",
        "head": None,
        **wiring(None, None, None, None, None),
        "prompts": None,
        "num_prompts": None,
        "chat_template": "auto",
        "max_new_tokens": MAX_NEW_TOKENS,
        "context_len": 1,
        "iterations": 1,
        "precision": None,
        "min_time": None,
        "max_time": None,
        "cold_l2": False,
        "acceptance": "greedy",
        "ignore_eos": False,
        "seed": 0,
        "dtype": dtype,
        "role": "decode",
        "max_num_batched_tokens": 8192,
    }
    device = setup.choose_device("cuda")
    options, _ = setup.make_options(arguments, device)
    model = setup.load(arguments, options, device)
    workload = setup.make_workload(arguments, options, model, setup.read_texts(arguments))
    return setup.make_bench(options, model, workload, resolve_backend("auto", device))


def decode(bench: Bench, runner: Runner, prompts: list[list[int]]) -> list[list[int]]:
    prefilled = prefill(bench.spec, prompts, bench.options.max_num_batched_tokens)
    begin_decoding(bench.spec, runner.state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    return generate(runner, prefilled.last.tolist()).token_ids


def check(dtype: str) -> tuple[dict[Scope, Tally], float]:
    """Tallies for each scope, and the noise of transformers' forward in logits."""
    bench = make_bench(dtype)
    capture_all(bench, lambda: None)
    distinct = [list(prompt) for prompt in bench.workload.prompts]
    plain = make_plain(getattr(torch, dtype), distinct, bench.model.eos_token_ids)
    tallies = {scope: Tally() for scope in Scope}
    for bucket in bench.plans[SPEC_TOKENS].batch_sizes:
        prompts = bench.workload.waves(bucket)[0]
        eager = decode(bench, bench.runners[SPEC_TOKENS, Scope.EAGER], prompts)
        for scope, tally in tallies.items():
            got = decode(bench, bench.runners[SPEC_TOKENS, scope], prompts)
            compare(tally, got, eager, plain)
    bench.release()
    return tallies, plain.noise


def compare(tally: Tally, got: list[list[int]], eager: list[list[int]], plain: Plain) -> None:
    for i, tokens in enumerate(got):
        request = i % len(plain.prompts)
        tally.requests += 1
        tally.equal_to_eager += tokens == eager[i]
        tally.equal_to_plain += tokens == plain.tokens[request]
        tally.margins.append(plain.margin(request, tokens))


def verdict(dtype: str, tally: Tally, noise: float) -> str:
    if dtype == "float32":
        return "ok" if tally.equal_to_plain == tally.requests else "WRONG"
    return "ok" if max(tally.margins) <= NEAR_TIE_NOISES * noise else "WRONG"


def table() -> list[str]:
    lines = [
        "| dtype | scope | requests | equal to eager | equal to plain greedy "
        "| largest margin at a first difference | noise | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        tallies, noise = check(dtype)
        lines += [
            f"| {dtype} | {scope} | {tally.requests} | {tally.equal_to_eager} "
            f"| {tally.equal_to_plain} | {max(tally.margins):.4f} | {noise:.4f} "
            f"| {verdict(dtype, tally, noise)} |"
            for scope, tally in tallies.items()
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    output = parser.parse_args().output
    heading = HEADING.format(
        k=SPEC_TOKENS,
        new=MAX_NEW_TOKENS,
        gpu=torch.cuda.get_device_name(),
        torch=torch.__version__,
    )
    text = heading + "\n" + "\n".join(table()) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(text)
    raise SystemExit("WRONG" in text)


if __name__ == "__main__":
    main()
