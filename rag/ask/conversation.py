"""What was said so far, of which the next question is part."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is not needed for the terminal to begin
    from rag.ask.session import Reply


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn as they are shown, and what of them is the context of the next question: an answer
    that was withheld is not."""

    shown: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    def and_then(self, question: str, reply: "Reply") -> "Conversation":
        said = (question,) if reply.abstained else (question, reply.answer)
        return Conversation((*self.shown, question, reply.answer), (*self.context, *said))
