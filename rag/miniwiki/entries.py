"""The encyclopedia's passages: who lives in the world, which institutions there are, and what is written of each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rag.miniwiki import names, sentences
from rag.miniwiki.dice import Dice

PRIVATE_SHARE = 0.6  # of people have a third passage

WOMAN = {"he": "she", "her": "her", "his": "her", "himself": "herself", "wife": "husband", "son": "daughter"}
MAN = {"he": "he", "her": "him", "his": "his", "himself": "himself", "wife": "wife", "son": "son"}


@dataclass(frozen=True)
class Entry:
    """One passage: the same slot in both editions."""

    title: str
    part: str
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Person:
    """Somebody in the encyclopedia. `passages` tells which facts each of their passages states."""

    name: str
    is_woman: bool
    answers: Mapping[str, str]
    passages: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Institution:
    """A museum, a council …: its head is one person in edition A and another in B."""

    title: str
    kind: str
    head_a: str
    head_b: str


def name_maker(dice: Dice, people: int, institutions: int) -> Callable[[bool], str]:
    """A function that draws a full name nobody has yet, of a woman or a man.

    A small world uses fewer different words, so that each still belongs to several people.
    """
    total = people + institutions
    given = {
        True: dice.some(names.WOMEN, max(15, total // 15)),
        False: dice.some(names.MEN, max(15, total // 15)),
    }
    surnames = dice.some(names.SURNAMES, max(40, total // 7))
    taken: set[str] = set()  # only asked for membership: its order never matters

    def draw(is_woman: bool) -> str:
        while True:
            name = f"{dice.pick(given[is_woman])} {dice.pick(surnames)}"
            if name not in taken:
                taken.add(name)
                return name

    return draw


def make_person(dice: Dice, draw_name: Callable[[bool], str]) -> Person:
    """Roll a person's facts: three different cities, two different years, and so on."""
    is_woman = dice.chance(0.5)
    name = draw_name(is_woman)
    birthplace, university, residence = dice.some(names.CITIES, 3)
    birth_year = dice.between(1880, 1949)
    answers = {
        "birthplace": birthplace,
        "birth_year": str(birth_year),
        "father_trade": dice.pick(names.TRADES),
        "university": f"University of {university}",
        "field": dice.pick(names.FIELDS),
        "employer": dice.pick(names.COMPANIES),
        "residence": residence,
        "prize": dice.pick(names.PRIZES),
        "retirement": str(birth_year + dice.between(57, 70)),
        "instrument": dice.pick(names.INSTRUMENTS),
        "language": dice.pick(names.LANGUAGES),
        "sport": dice.pick(names.SPORTS),
    }
    passages = {
        "life": tuple(dice.some(sentences.PASSAGES["life"], dice.between(3, 5))),
        "career": tuple(dice.shuffled(sentences.PASSAGES["career"])),
    }
    if dice.chance(PRIVATE_SHARE):
        spouse = draw_name(not is_woman)
        while spouse.split()[1] == name.split()[1]:  # a shared surname would give half of the answer away
            spouse = draw_name(not is_woman)
        answers["spouse"] = spouse
        passages["private"] = tuple(dice.shuffled(sentences.PASSAGES["private"]))
    stated = [relation for relations in passages.values() for relation in relations]
    return Person(name, is_woman, {relation: answers[relation] for relation in stated}, passages)


def write_person(dice: Dice, person: Person) -> list[Entry]:
    """Write a person's passages: the facts in their rolled order, a wording and some colour for each."""
    birth_year = int(person.answers.get("birth_year", 0)) or int(person.answers["retirement"]) - 64
    surname = person.name.split()[1]
    slots = dict(WOMAN if person.is_woman else MAN)
    entries = []
    for part, relations in person.passages.items():
        written = []
        for relation in relations:
            known = surname if written else person.name
            by_pronoun = bool(written) and dice.chance(0.7)
            slots["known"] = known
            slots["name"] = slots["he"] if by_pronoun else known
            slots["him"] = slots["her"] if by_pronoun else known
            answer = person.answers[relation]
            year = birth_year + (dice.between(22, 35) if relation == "spouse" else dice.between(36, 54))
            wording = dice.pick(sentences.PEOPLE_SENTENCES[relation])
            written.append(
                sentences.fill(
                    wording,
                    slots
                    | colours(dice)
                    | {"answer": answer, "a_answer": sentences.article(answer), "year": str(year)},
                )
            )
        text = " ".join(written)
        entries.append(Entry(person.name, part, text, text))
    return entries


def write_institution(dice: Dice, institution: Institution) -> list[Entry]:
    """Write the two passages of an institution; only the sentence about its head has two versions."""
    kind = sentences.KINDS[institution.kind]
    slots = {
        "title": institution.title,
        "office": kind["office"],
        "known": dice.pick(kind["known"]),
        "founded": str(dice.between(1820, 1900)),
        "moved": str(dice.between(1901, 1960)),
        "fire": str(dice.between(1961, 1990)),
    }
    short = "the " + institution.kind.split()[-1].lower()
    since_a, since_b = str(dice.between(1994, 2008)), str(dice.between(2010, 2024))

    def compose(wordings: Iterable[str], head: str, since: str, roll: list[dict[str, str]]) -> str:
        parts = []
        for number, (wording, colour) in enumerate(zip(wordings, roll, strict=True)):
            inst = f"the {institution.title}" if number == 0 else short
            parts.append(
                sentences.fill(wording, slots | colour | {"inst": inst, "answer": head, "year": since})
            )
        return " ".join(parts)

    history = [dice.pick(group) for group in dice.shuffled(sentences.HISTORY_SENTENCES)]
    colour = [colours(dice) for _ in history]
    text = compose(history, "", "", colour)
    others = [dice.pick(group) for group in dice.some(sentences.OFFICE_SENTENCES, 3)]
    leadership = dice.shuffled([dice.pick(sentences.HEAD_SENTENCES), *others])
    colour = [colours(dice) for _ in leadership]
    return [
        Entry(institution.title, "history", text, text),
        Entry(
            institution.title,
            "leadership",
            compose(leadership, institution.head_a, since_a, colour),
            compose(leadership, institution.head_b, since_b, colour),
        ),
    ]


def colours(dice: Dice) -> dict[str, str]:
    """Roll a word for each slot of colour."""
    return {slot: dice.pick(words) for slot, words in sentences.COLOUR.items()}
