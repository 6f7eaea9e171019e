"""Define the parts of a request, each of which holds what one layer of the tool needs.

Fields are named as their flags are. A list does for a tuple, and a word for its enum. A default is
the value that ``cgbench run`` takes if the flag is left out. None is settled later, when the device
and the model are known.
"""

from dataclasses import dataclass, field
from typing import Annotated

from cgbench.inputs import check_whole
from cgbench.planning import CaptureUnit
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.choices import (
    ChatTemplate,
    Compile,
    ConcatOrder,
    Dtype,
    FirstEmbedding,
    HeadPlacement,
    KvDtype,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
    QuantMode,
    Role,
)
from cgbench.request.keys import Key, Share, Typed
from cgbench.request.model_ref import DEFAULT_MODEL
from cgbench.words import Routing, Scope

MAX_PROCESSES = 1000


@dataclass(frozen=True, slots=True)
class HeadWiring(Typed):
    """A ``HeadWiring`` overrides what a draft head's family does.

    None leaves a value as the family has it. ``family`` is a name in
    ``models.heads.families.FAMILIES``.
    """

    family: Annotated[str | None, Key("head_family")] = None
    concat: Annotated[ConcatOrder | None, Key("head_concat")] = None
    hidden_in: Annotated[NormSide | None, Key("head_hidden_in", "--head-hidden")] = None
    chain: Annotated[NormSide | None, Key("head_chain", "--chain-norm")] = None
    out_norm: Annotated[OutputNorm | None, Key("head_out_norm")] = None
    norm_form: Annotated[NormForm | None, Key("head_norm_form")] = None
    first_embed: Annotated[FirstEmbedding | None, Key("head_first_embed")] = None
    feed: Annotated[ModuleFeed | None, Key("head_feed")] = None


@dataclass(frozen=True, slots=True)
class ModelRequest(Typed):
    """A ``ModelRequest`` states which model and head are loaded, and how.

    ``ref`` is ``default``, ``preset:NAME``, a folder, a GGUF file or a hub id. ``head`` is a folder
    or hub id whose head replaces the model's own. ``routing`` None draws the experts of a preset
    evenly. It leaves those of any other model to its router. ``mtp_modules`` is the most modules of
    the head that draft. None is all. ``draft_vocab`` is how many tokens may be drafted: the
    likeliest of the file ``draft_vocab_from``. None is all of the file, or without one any token.
    """

    ref: Annotated[str, Key("model", "MODEL")] = DEFAULT_MODEL
    head: str | None = None
    wiring: HeadWiring = field(default_factory=HeadWiring)
    dtype: Dtype = Dtype.AUTO
    routing: Routing | None = None
    mtp_modules: int | None = None
    draft_vocab: int | None = None
    draft_vocab_from: str | None = None
    kv_dtype: KvDtype = KvDtype.AUTO
    quant: QuantMode = QuantMode.AUTO

    def __post_init__(self) -> None:
        Typed.__post_init__(self)
        if self.mtp_modules is not None:
            check_whole("--mtp-modules", self.mtp_modules, 1)
        if self.draft_vocab is not None:
            check_whole("--draft-vocab", self.draft_vocab, 1)

    @property
    def draft_vocab_flag(self) -> str | None:
        """Return the flag that reduces the draft vocabulary, or None if none does."""
        if self.draft_vocab is not None:
            return "--draft-vocab"
        return None if self.draft_vocab_from is None else "--draft-vocab-from"


@dataclass(frozen=True, slots=True)
class CaptureRequest(Typed):
    """A ``CaptureRequest`` states what a deployment captures, for which k, and its largest step.

    ``max_num_seqs`` None is the largest batch size. ``max_num_batched_tokens`` are the most tokens
    of one prefill forward.
    """

    spec_tokens: tuple[int, ...] = (3,)
    scopes: tuple[Scope, ...] = tuple(Scope)
    policy: str = "scaled"
    capture_sizes: tuple[int, ...] = ()
    capture_unit: CaptureUnit = CaptureUnit.REQUESTS
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    role: Role = Role.MIXED
    attention: str = "auto"
    compile: Compile = Compile.OFF


@dataclass(frozen=True, slots=True)
class WorkloadRequest(Typed):
    """A ``WorkloadRequest`` states what is decoded: prompts, how many together, and how far.

    Lengths are in tokens. ``prompts`` None are the shipped ones, or for a preset random tokens.
    ``acceptance`` states how drafts are kept. None is greedy, or for a preset the golden length of
    its family.
    """

    prompts: str | None = None
    num_prompts: int | None = None
    chat_template: ChatTemplate = ChatTemplate.AUTO
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    max_new_tokens: int = 64
    context_len: int = 256
    acceptance: str | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class TimingRequest(Typed):
    """A ``TimingRequest`` states how a run is timed, and when that is enough.

    None is the device's default.
    """

    iterations: int | None = None
    precision: Share | None = 0.005
    min_time_s: Annotated[float | None, Key("min_time")] = None
    max_time_s: Annotated[float | None, Key("max_time")] = None
    processes: int = 1
    cold_l2: bool = False
    nvtx: bool = False

    def __post_init__(self) -> None:
        Typed.__post_init__(self)
        check_whole("--processes", self.processes, 1, MAX_PROCESSES)


@dataclass(frozen=True, slots=True)
class SharingRequest(Typed):
    """A ``SharingRequest`` states how GPUs share the model.

    One GPU shares nothing, so both are None then.
    """

    tp: int | None = None
    head: Annotated[HeadPlacement | None, Key("tp_head")] = None

    def __post_init__(self) -> None:
        Typed.__post_init__(self)
        if self.tp is not None:
            check_whole("--tp", self.tp, 1)
        is_shared = self.tp is not None and self.tp > 1
        head = self.head or HeadPlacement.DIVIDED
        object.__setattr__(self, "tp", self.tp if is_shared else None)
        object.__setattr__(self, "head", head if is_shared else None)

    @property
    def num_ranks(self) -> int:
        """Return how many ranks run the model, 1 without sharing."""
        return self.tp or 1
