"""What stands in the terminal: passages with the answer's words marked, the sentence that holds it, its document."""

from typing import TYPE_CHECKING

from rich.text import Text

from rag.ask.highlight import answer_spans, snippet
from rag.safe_text import printable

if TYPE_CHECKING:
    from rag.ask.session import Reply, Source

SNIPPET, SENTENCE = 220, 300  # characters of a passage, of a sentence, that are shown
MARKED = "bold black on yellow"


def shown(source: "Source", answer: str, with_file: bool = False) -> Text:
    """Title and the piece of a passage where the answer's words stand, which are marked."""
    if source.id is None:
        return Text("no passage (the null document)", style="dim")
    passage = printable(source.text)
    text, spans = snippet(passage, answer_spans(passage, answer), SNIPPET)
    marked = Text(text)
    name = f"{source.file}, {source.title}" if with_file else source.title
    title = Text(printable(name), style="bold")
    for where, places in ((marked, spans), (title, answer_spans(title.plain, answer))):
        for start, end in places:
            where.stylize(MARKED, start, end)
    return Text("\n").join([title, marked]) if title.plain else marked


def shortened(question: str) -> str:
    """A question by its beginning, for a message about it."""
    text = printable(question)
    return text if len(text) <= 80 else f"{text[:79]}…"


def quoted(reply: "Reply") -> Text:
    """The document that an answer is from, and the sentence that holds it with its words marked."""
    source = reply.source
    if source is None:
        return Text("")
    whole = printable(reply.sentence)
    sentence, spans = snippet(whole, answer_spans(whole, reply.answer), SENTENCE)
    marked = Text(sentence)
    for start, end in spans:
        marked.stylize(MARKED, start, end)
    name = printable(f"{source.file}, {source.title}" if source.title else source.file)
    return Text.assemble("  ", (name, "bold"), ": " if sentence else "", marked)


def several(reply: "Reply") -> list[Text]:
    """The answers that stand in different passages, each with its share of p(y|x), its document and sentence."""
    if not reply.rivals:
        return []
    lines = [Text("  Different passages give different answers:")]
    for rival in reply.rivals:
        whole = printable(rival.sentence)
        sentence, spans = snippet(whole, answer_spans(whole, rival.answer), SENTENCE)
        marked = Text(sentence)
        for start, end in spans:
            marked.stylize(MARKED, start, end)
        source = rival.source
        name = printable(f"{source.file}, {source.title}" if source.title else source.file)
        share = Text(f"{rival.share:7.0%}  ")
        lines.append(
            Text.assemble(
                share,
                (printable(rival.answer), "bold"),
                "  ",
                (name, "dim"),
                ": " if sentence else "",
                marked,
            )
        )
    return lines


def evidence(reply: "Reply") -> list[Text]:
    """What speaks for or against the answer, in one line; none of a closed book."""
    return [Text(f"  {printable('; '.join(said))}", style="dim")] if (said := reply.evidence()) else []


def supports(reply: "Reply") -> list[Text]:
    """Of each sentence of a drawn text, how much of it the passages support."""
    if not reply.support:
        return []
    lines = [Text("  of each sentence's trigrams and names, in the passages:", style="dim")]
    for sentence, each in reply.support:
        share = f"{each.share:7.0%}" if each.ngrams else "      –"
        missing = f"  (not there: {printable(', '.join(each.unsupported_names))})"
        lines.append(
            Text.assemble(
                f"{share}  ",
                printable(sentence),
                (missing if each.unsupported_names else "", "bold"),
            )
        )
    return lines
