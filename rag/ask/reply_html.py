"""A reply as HTML: the answer, the passages as cards, and the posterior of each token (figure 2) as a heat map.

Whatever comes from a model, a passage or a user is escaped. Colours are one hue from light to dark, and every one of
them stands beside its number.
"""

from collections.abc import Sequence

from rag.ask.highlight import answer_spans
from rag.ask.session import Reply, Source
from rag.reports.contrast import text_on
from rag.safe_text import html

LIGHT, DARK = (239, 246, 252), (8, 48, 107)  # of the heat map, for 0 and 1
CSS = """
#ask, #reset {align-self: flex-end; height: 2.9em}
.rag-answer {padding: 0.2em 0.1em}
.rag-who {font-size: 0.85em; opacity: 0.75}
.rag-text {font-size: 1.6em; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere}
.rag-note {font-size: 0.85em; opacity: 0.75}
.rag-turns {display: flex; flex-direction: column; gap: 0.5em; min-height: 8em; max-height: 24em; overflow-y: auto;
  border: 1px solid var(--border-color-primary, #ccc); border-radius: 8px; padding: 0.8em}
.rag-turn {max-width: 80%; padding: 0.45em 0.8em; border-radius: 10px; overflow-wrap: anywhere; line-height: 1.4}
.rag-asked {align-self: flex-end; background: rgba(0, 114, 178, 0.18)}
.rag-answered {align-self: flex-start; background: rgba(128, 128, 128, 0.18)}
.rag-title {font-weight: 600}
.rag-scroll {overflow-x: auto}
.rag-swipe {display: none}
@media (max-width: 640px) {.rag-swipe {display: block}}
.rag-heat {border-collapse: separate !important; border-spacing: 2px !important; border: none !important;
  font-size: 0.9em; width: auto; margin: 0.4em 0}
.rag-heat th {font-weight: 600; padding: 0.25em 0.5em; text-align: center; border: none; white-space: pre}
.rag-heat th.rag-passage {font-weight: 400; text-align: left; max-width: min(18em, 38vw);
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; position: sticky; left: 0;
  background: var(--body-background-fill, #fff)}
.rag-heat td {min-width: 3.6em; padding: 0.35em 0.3em; text-align: center; border: none; border-radius: 3px;
  font-variant-numeric: tabular-nums}
.rag-heat tr {border: none !important; background: none !important}
.rag-heat .rag-gap {min-width: 0.5em; padding: 0}
.rag-cards {display: grid; gap: 0.7em}
.rag-card {border: 1px solid var(--border-color-primary, #ccc); border-radius: 8px; padding: 0.7em 0.9em}
.rag-card p {margin: 0.35em 0 0.5em; line-height: 1.45; overflow-wrap: anywhere}
.rag-card mark {background: #ffd54a; color: #111; border-radius: 2px; padding: 0 0.1em}
.rag-sentence {margin: 0.3em 0; line-height: 1.45}
.rag-sentence mark {background: #ffd54a; color: #111; border-radius: 2px; padding: 0 0.1em}
.rag-bar {display: grid; grid-template-columns: 9.5em 1fr 3.4em; gap: 0.6em; align-items: center; font-size: 0.85em}
.rag-track {height: 0.75em; border-radius: 3px; background: rgba(128, 128, 128, 0.18)}
.rag-fill {height: 100%; border-radius: 3px; min-width: 1px}
.rag-bar .rag-number {text-align: right; font-variant-numeric: tabular-nums}
"""


def answer_html(reply: Reply, who: str) -> str:
    """The answer, who gave it, and log p(y|x); further answers, those of other passages, and what speaks for it.

    Where somebody asked whether to believe it, also the sentence that holds it and where it stands, or that it is not
    believed.
    """
    text = html(reply.answer) or "<em>an empty answer</em>"
    if reply.abstained:
        text = f"{html(reply.answer.capitalize())}."
    elif reply.known is False:
        text = "I do not know: nothing that I read answers this."
    others = "".join(
        f'<div class="rag-note">or: {html(other)} ({logprob:.2f})</div>' for other, logprob in reply.others
    )
    logprob = "" if reply.abstained else f"log p(y|x) = {_number(reply.logprob)}"
    said = "; ".join([*([logprob] if logprob else []), *map(html, reply.evidence())])
    return (
        f'<div class="rag-answer"><div class="rag-who">{html(who)}</div><div class="rag-text">{text}</div>'
        f'{_from(reply)}{_rivals(reply)}{_support(reply)}<div class="rag-note">{said}</div>{others}</div>'
    )


def conversation_html(turns: Sequence[str]) -> str:
    """Questions and answers in turn, the newest last; nothing before the first."""
    who = ("asked", "answered")
    said = "".join(
        f'<div class="rag-turn rag-{who[place % 2]}">{html(text) or "<em>an empty answer</em>"}</div>'
        for place, text in enumerate(turns)
    )
    return f'<div class="rag-turns" role="log" aria-live="polite">{said}</div>'


def _rivals(reply: Reply) -> str:
    """The answers that stand in different passages."""
    if not reply.rivals:
        return ""
    rows = "".join(
        f'<div class="rag-sentence">{rival.share:.0%}&ensp;<strong>{html(rival.answer)}</strong>&ensp;'
        f"{html(_name(rival.source))}: {marked(rival.sentence, rival.answer)}</div>"
        for rival in reply.rivals
    )
    return f'<div><div class="rag-note">Different passages give different answers:</div>{rows}</div>'


def _support(reply: Reply) -> str:
    """Of each sentence of a drawn text, how much of it the passages support."""
    if not reply.support:
        return ""
    rows = ""
    for sentence, each in reply.support:
        share = f"{each.share:.0%}" if each.ngrams else "–"
        missing = f" (not there: {html(', '.join(each.unsupported_names))})" if each.unsupported_names else ""
        rows += f'<div class="rag-sentence">{share}&ensp;{html(sentence)}<strong>{missing}</strong></div>'
    note = "Of each sentence\u2019s trigrams and names, in the passages:"
    return f'<div><div class="rag-note">{note}</div>{rows}</div>'


def _from(reply: Reply) -> str:
    """The sentence that holds the answer, and its document."""
    if reply.known is None or reply.abstained or (source := reply.source) is None:
        return ""
    guess = "" if reply.known else f"best guess: {html(reply.answer)}; "
    sentence = marked(reply.sentence, reply.answer)
    return f'<div class="rag-sentence">{guess}<strong>{html(source.file)}</strong>: {sentence}</div>'


def heat_map_html(reply: Reply) -> str:
    """RAG-Token's p(z_i|x,y_i,y_<i): a row a passage, a column a token, after the prior p(z|x)."""
    if not reply.sources:
        return ""
    if any(source.by_token is None for source in reply.sources):
        return (
            '<div class="rag-note">One passage explains the whole answer here: its posterior stands on the cards. '
            "The posterior of each token by itself is RAG-Token's (figure 2).</div>"
        )
    gap = '<td class="rag-gap"></td>'
    head = "".join(f'<th class="rag-token">{html(token) or "␣"}</th>' for token in reply.tokens)
    rows = "".join(
        f'<tr><th class="rag-passage" title="{html(source.text)}">{rank}&ensp;{html(_name(source))}</th>'
        f"{_cell(source.prior, 'rag-prior')}{gap}"
        f"{''.join(_cell(value, 'rag-posterior') for value in source.by_token or ())}</tr>"
        for rank, source in enumerate(reply.sources, start=1)
    )
    return (
        '<div class="rag-title">Which passage each token comes from</div>'
        '<div class="rag-note">p(z<sub>i</sub> | x, y<sub>i</sub>, y<sub>&lt;i</sub>), the posterior of the '
        "passages at each token; on the left, before the answer is known, p(z | x). A column adds up to 1.</div>"
        '<div class="rag-note rag-swipe">Scroll sideways for the other tokens →</div>'
        '<div class="rag-scroll"><table class="rag-heat"><thead><tr><th class="rag-passage"></th>'
        f'<th class="rag-prior">p(z|x)</th>{gap}{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def cards_html(reply: Reply) -> str:
    """The passages in the order of retrieval, the answer's words marked, with bars for prior and posterior."""
    cards = "".join(_card(rank, source, reply) for rank, source in enumerate(reply.sources, start=1))
    return f'<div class="rag-cards">{cards}</div>'


def _card(rank: int, source: Source, reply: Reply) -> str:
    answer = reply.quoted
    file = "" if reply.known is None else f'<span class="rag-note">{html(source.file)}</span>&ensp;'
    return (
        f'<div class="rag-card"><div class="rag-title">{rank}&ensp;{file}{marked(_name(source), answer)}</div>'
        f"<p>{marked(source.text, answer)}</p>"
        f"{_bar('before, p(z|x)', source.prior, '#8c8c8c')}{_bar('after, p(z|x,y)', source.posterior, '#0072b2')}</div>"
    )


def _name(source: Source) -> str:
    return "no passage (the null document)" if source.id is None else source.title or f"passage {source.id}"


def marked(text: str, answer: str) -> str:
    """Escaped, with <mark> around the answer's words."""
    pieces, last = [], 0
    for start, end in answer_spans(text, answer):
        pieces += [html(text[last:start]), f"<mark>{html(text[start:end])}</mark>"]
        last = end
    return "".join([*pieces, html(text[last:])])


def _bar(label: str, value: float, colour: str) -> str:
    return (
        f'<div class="rag-bar"><span>{html(label)}</span><div class="rag-track"><div class="rag-fill" '
        f'style="width: {100 * value:.1f}%; background: {colour}"></div></div>'
        f'<span class="rag-number">{value:.3f}</span></div>'
    )


def _cell(value: float, kind: str) -> str:
    red, green, blue = (
        round(light + (dark - light) * value) for light, dark in zip(LIGHT, DARK, strict=True)
    )
    text = text_on((red / 255, green / 255, blue / 255))
    return (
        f'<td class="{kind}" style="background: rgb({red}, {green}, {blue}); color: {text}">{value:.2f}</td>'
    )


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")
