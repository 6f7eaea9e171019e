"""Chat templates: when one is used, what it gives, and that no token is written twice."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cgbench.errors import BadInputError
from cgbench.request.choices import ChatTemplate
from cgbench.workload.chat import make_encode, uses_template
from cgbench.workload.prompt_files import Prompt, PromptTexts
from tests.support.tiny import BOS, CHAT_TEMPLATE, add_tokenizer

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("chatty")
    add_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("plain")
    add_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def texts(*prompts: Prompt, instruction: str = "") -> PromptTexts:
    return PromptTexts("mine.jsonl", prompts, instruction=instruction)


def encoded(
    tokenizer: PreTrainedTokenizerBase, given: PromptTexts, *, chat_template: bool
) -> list[int]:
    return make_encode(tokenizer, given, chat_template=chat_template)(given.prompts[0])


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(tokens)).replace("Ġ", " ").replace("Ċ", "\n")


@pytest.mark.parametrize(("mode", "used"), [("auto", True), ("on", True), ("off", False)])
def test_a_template_is_used_unless_it_is_refused(
    chatty: PreTrainedTokenizerBase, mode: ChatTemplate, used: bool
) -> None:
    assert uses_template(chatty, texts("a"), mode) is used


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_without_a_template_none_is_used(
    plain: PreTrainedTokenizerBase, mode: ChatTemplate
) -> None:
    assert uses_template(plain, texts("a"), mode) is False


def test_on_without_a_template_is_refused(plain: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInputError) as error:
        uses_template(plain, texts("a"), "on")
    assert str(error.value) == "--chat-template on: MODEL's tokenizer has no chat template"


def test_a_text_is_one_message_and_the_model_is_asked_to_answer(
    chatty: PreTrainedTokenizerBase,
) -> None:
    tokens = encoded(chatty, texts("Why é?"), chat_template=True)
    shown = f"{BOS}<user>Why Ã©?\n<assistant>"  # the two bytes of é, as the vocabulary has them
    assert decoded(chatty, tokens) == shown


def test_a_chat_is_given_as_it_is(chatty: PreTrainedTokenizerBase) -> None:
    tokens = encoded(chatty, texts(CHAT, instruction="Do it. "), chat_template=True)
    assert decoded(chatty, tokens) == f"{BOS}<system>Be brief.\n<user>Why?\n<assistant>"


def test_an_instruction_is_for_chats_alone(chatty: PreTrainedTokenizerBase) -> None:
    given = texts("def f():", instruction="Complete it.\n")
    in_chat = encoded(chatty, given, chat_template=True)
    assert decoded(chatty, in_chat) == f"{BOS}<user>Complete it.\ndef f():\n<assistant>"
    assert decoded(chatty, encoded(chatty, given, chat_template=False)) == f"{BOS}def f():"


@pytest.mark.parametrize("chat_template", [False, True])
def test_there_is_one_bos(chatty: PreTrainedTokenizerBase, chat_template: bool) -> None:
    tokens = encoded(chatty, texts("a"), chat_template=chat_template)
    assert tokens[0] == chatty.bos_token_id and tokens.count(chatty.bos_token_id) == 1


def test_tokenising_the_rendered_text_would_double_bos(
    chatty: PreTrainedTokenizerBase,
) -> None:
    """So the test above can fail: this tokenizer adds one of its own."""
    text = chatty.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chatty(text)["input_ids"].count(chatty.bos_token_id) == 2


@pytest.mark.parametrize(
    ("has_template", "mode", "why"),
    [
        (False, "auto", "MODEL's tokenizer has no chat template"),
        (True, "off", "--chat-template off"),
    ],
)
def test_a_chat_needs_a_template(
    chatty: PreTrainedTokenizerBase,
    plain: PreTrainedTokenizerBase,
    has_template: bool,
    mode: ChatTemplate,
    why: str,
) -> None:
    with pytest.raises(BadInputError) as error:
        uses_template(chatty if has_template else plain, texts("a", CHAT), mode)
    assert str(error.value) == f'--prompts mine.jsonl: prompt 2 is "messages", but {why}'


def test_what_the_template_refuses_is_one_line_that_names_the_prompt(
    chatty: PreTrainedTokenizerBase,
) -> None:
    given = texts("a", [{"role": "tool", "content": "42"}])
    with pytest.raises(BadInputError) as error:
        make_encode(chatty, given, chat_template=True)(given.prompts[1])
    assert str(error.value) == (
        "--prompts mine.jsonl: the chat template refuses prompt 2: No tools."
    )
