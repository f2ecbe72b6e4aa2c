"""What a causal language model reads: a template with a place for the passage and one for the question.

A template is text, or messages for the tokenizer's chat template. Its fixed text is cut at the two places and each part
is tokenised by itself, so that the passage's tokens are those of the index and the last token of a prompt, after which
the answer begins, is always the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag.errors import UserError, one_line
from rag.generators.context import special_tokens, token_rows

PASSAGE, QUESTION = "{passage}", "{question}"
PLAIN = "{passage}\n\nQuestion: {question}\nAnswer:"
CHAT = "chat"  # stands for this message:
CONTENT = (
    "{passage}\n\nAnswer the question from the text above in as few words as possible.\nQuestion: {question}"
)

Template = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Prompt:
    """The fixed parts of a prompt "before passage between question after", or with `question_first` the places changed.

    before, after: their tokens, the first with what the tokenizer puts before every text. between: text, which is
    tokenised together with the question. joint: what stands between a prompt and its answer: a space or nothing.
    reads_passages: False: there is a place for the question alone.
    """

    before: list[int]
    between: str
    after: list[int]
    joint: str
    question_first: bool
    reads_passages: bool

    @classmethod
    def of(cls, template: Template | None, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Cut a template at its places; UserError where it has none for the question or no end of its own."""
        text, is_chat = _text(PLAIN if template is None else template, tokenizer)
        if text.count(QUESTION) != 1 or text.count(PASSAGE) > 1:
            found = (
                f"{text.count(QUESTION)} places for the question and {text.count(PASSAGE)} for the passage"
            )
            if QUESTION not in text:
                found = "no place for the question"
            raise UserError(
                f"generator.template has {found}: write {QUESTION} where the question belongs, and {PASSAGE} where the "
                "passage belongs, each once"
            )
        first, second = sorted([PASSAGE, QUESTION], key=text.find)
        before, _, rest = text.partition(first) if first in text else ("", "", text)
        between, _, after = rest.partition(second)
        if first not in text:
            before, between = between, ""
        if not (after := after.rstrip(" ")):
            raise UserError(
                f"generator.template ends with {second}, so that nothing says where the answer begins: put text behind "
                "it, such as a line with Answer:"
            )
        leading = [] if is_chat else special_tokens(tokenizer)[0]
        head, tail = token_rows(tokenizer, [before, after])
        joint = _joint(tokenizer, after, tail)
        return cls(
            [*leading, *head], between, tail, joint, first == QUESTION and PASSAGE in text, PASSAGE in text
        )


def _text(template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """A template as text with its two places, and whether it was a chat's, whose special tokens it holds itself."""
    if isinstance(template, str) and template != CHAT:
        return template, False
    messages: Any = [{"role": "user", "content": CONTENT}] if isinstance(template, str) else template
    if not isinstance(messages, Sequence) or not all(
        isinstance(each, Mapping)
        and {"role", "content"} == set(each)
        and all(isinstance(part, str) for part in each.values())
        for each in messages
    ):
        raise UserError(
            "generator.template is neither text nor a list of messages: give each message a role and a content, both "
            "of them text"
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"generator.template={CHAT if isinstance(template, str) else '[messages]'}, but the tokenizer "
            f"{tokenizer.name_or_path} has no chat template: give the template as text"
        )
    given: Any = [dict(each) for each in messages]
    try:
        text = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer's chat template refuses generator.template ({one_line(str(error))}): change its messages"
        ) from error
    return str(text), True


def _joint(tokenizer: PreTrainedTokenizerBase, after: str, tokens: Sequence[int]) -> str:
    """What stands before an answer so that its tokens are those that follow in running text."""
    if after[-1].isspace() or tokens[-1] in tokenizer.all_special_ids:
        return ""
    whole = token_rows(tokenizer, [f"{after} a"])[0]
    return "" if whole == [*tokens, *token_rows(tokenizer, ["a"])[0]] else " "
