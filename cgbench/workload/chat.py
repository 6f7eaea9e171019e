"""Turn a prompt into token ids, through the tokenizer's chat template or as plain text."""

from collections.abc import Callable
from functools import partial

from transformers import PreTrainedTokenizerBase

from cgbench.errors import BadInputError, first_line
from cgbench.request.choices import ChatTemplate
from cgbench.workload.prompt_files import Prompt, PromptTexts


def uses_template(
    tokenizer: PreTrainedTokenizerBase, texts: PromptTexts, mode: ChatTemplate
) -> bool:
    """Return whether prompts go through the chat template. ``auto`` means yes if there is one.

    Raise ``BadInputError`` for ``on`` without a template, and for chats if no template is used.
    """
    has_template = tokenizer.chat_template is not None
    if mode == ChatTemplate.ON and not has_template:
        raise BadInputError("--chat-template on: MODEL's tokenizer has no chat template")
    used = has_template and mode != ChatTemplate.OFF
    chats = [i for i, prompt in enumerate(texts.prompts, 1) if not isinstance(prompt, str)]
    if chats and not used:
        why = "--chat-template off" if has_template else "MODEL's tokenizer has no chat template"
        raise BadInputError(f'--prompts {texts.source}: prompt {chats[0]} is "messages", but {why}')
    return used


def make_encode(
    tokenizer: PreTrainedTokenizerBase, texts: PromptTexts, *, chat_template: bool
) -> Callable[[Prompt], list[int]]:
    """Return a function from a prompt to its token ids, special tokens included."""
    if chat_template:
        return partial(_encode_chat, tokenizer, texts)
    return partial(_encode_text, tokenizer, texts)


def _encode_text(
    tokenizer: PreTrainedTokenizerBase, texts: PromptTexts, prompt: Prompt
) -> list[int]:
    try:
        return [int(token) for token in tokenizer(prompt)["input_ids"]]
    # Tokenizers in Rust raise errors that have no class of their own.
    except Exception as error:
        raise _refused("MODEL's tokenizer", texts, prompt, error) from error


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, texts: PromptTexts, prompt: Prompt
) -> list[int]:
    """Return the token ids of a chat. A text becomes one message of the user's.

    The template writes the special tokens, a leading one included. ``tokenize=True`` keeps the
    tokenizer from adding them again.
    """
    text = texts.instruction + prompt if isinstance(prompt, str) else None
    messages = prompt if text is None else [{"role": "user", "content": text}]
    try:
        tokens = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    # A template is the checkpoint's own program, so it may fail in any way.
    except Exception as error:
        raise _refused("the chat template", texts, prompt, error) from error
    return [int(token) for token in tokens]


def _refused(who: str, texts: PromptTexts, prompt: Prompt, error: Exception) -> BadInputError:
    number = texts.prompts.index(prompt) + 1
    return BadInputError(
        f"--prompts {texts.source}: {who} refuses prompt {number}: {first_line(error)}"
    )
