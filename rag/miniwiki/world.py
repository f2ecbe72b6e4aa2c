"""The world itself: who lives in it, what the encyclopedia says, what is asked, and the files that hold it.

The encyclopedia has two editions, which differ only in who heads each institution and since when;
passage number n is the same slot in both. Questions are split by subject: nobody is asked about in two
of train, dev and test.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.files import hash_file, write_aside, write_json
from rag.miniwiki import facts, names, sentences
from rag.miniwiki.dice import Dice

# Streams of dice, one a part of the world.
NAMING, PEOPLE, INSTITUTIONS, FACTS, SPLIT, ASKING = range(6)

FACTS_PER_PERSON = 5  # questions about a training person
# A passage may hold two cities or two years, and only some people have a private life: these relations would be
# practised too little otherwise. Dev and test questions are drawn evenly.
TRAINING_WEIGHTS: dict[str, int] = dict.fromkeys(
    ("birthplace", "retirement", "spouse", "sport", "language", "instrument"), 2
)
TEST_QUESTIONS_PER_PERSON = 2
HEAD_WORDINGS = 3  # questions about a training institution
PRIVATE_SHARE = 0.6  # of people have a third passage
DEV_FACTS = 150

# The first retriever learns from questions of these relations alone, one a kind of passage. It learns to find
# the person; which passage holds the other ten relations is left to training end to end.
DPR_RELATIONS = ("birthplace", "employer", "instrument")
HARD_NEGATIVES = 6

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


@dataclass(frozen=True)
class Question:
    """A question, its answers in both editions and the passage (title, part) that answers it."""

    text: str
    answer: str
    where: tuple[str, str]
    relation: str
    subject: str
    group: str
    answer_b: str | None = None


@dataclass
class World:
    """All that is written: passages in alphabetical order and the questions of each file."""

    entries: list[Entry] = field(default_factory=list)
    people: list[Person] = field(default_factory=list)
    institutions: list[Institution] = field(default_factory=list)
    questions: dict[str, list[Question]] = field(default_factory=dict)


def make_world(seed: int, people: int, institutions: int) -> World:
    """Make the whole world in memory."""
    check_sizes(seed, people, institutions)
    world = World()
    draw_name = name_maker(Dice(seed, NAMING), people, institutions)
    dice = Dice(seed, PEOPLE)
    for _ in range(people):
        person = make_person(dice, draw_name)
        world.people.append(person)
        world.entries.extend(write_person(dice, person))
    dice = Dice(seed, INSTITUTIONS)
    titles = [f"{city} {kind}" for city in names.CITIES for kind in sentences.KINDS]
    for title in dice.some(titles, institutions):
        institution = Institution(
            title, title.split(" ", 1)[1], draw_name(dice.chance(0.5)), draw_name(dice.chance(0.5))
        )
        world.institutions.append(institution)
        world.entries.extend(write_institution(dice, institution))
    dice = Dice(seed, FACTS)
    for topic in facts.TOPICS:
        world.entries.extend(write_fact(dice, topic, row) for row in topic.rows())
    world.entries.sort(key=lambda entry: (entry.title, entry.part))
    ask(world, seed)
    return world


def check_sizes(seed: int, people: int, institutions: int) -> None:
    """Refuse a world that the lists of names cannot fill or that is too small to be split."""
    if seed < 0:
        raise UserError(f"seed={seed}: the seed must be 0 or more")
    most = len(names.CITIES) * len(sentences.KINDS)
    if not 40 <= institutions <= most:
        raise UserError(f"institutions={institutions}: choose from 40 to {most}, so many names there are")
    if not 120 <= people <= 50_000:
        raise UserError(
            f"people={people}: choose from 120 to 50000, so that every name belongs to several people"
        )


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


def write_fact(dice: Dice, topic: facts.Topic, row: dict[str, str]) -> Entry:
    """Write the passage of one row of a table of real facts."""
    slots = row | {
        f"a_{column}": sentences.article(row[column]) for column in ("form", "kind") if column in row
    }
    written = []
    for column in dice.shuffled(list(topic.sentences)):
        slots["name"] = topic.again if written else row["name"]
        slots["it"] = "it" if written else row["name"]
        written.append(sentences.fill(dice.pick(topic.sentences[column]), slots))
    text = " ".join(written)
    return Entry(fact_title(row), topic.name, text, text)


def fact_title(row: dict[str, str]) -> str:
    """The title of a fact's passage: its name with a capital and without the article "the"."""
    name = row["name"].removeprefix("the ")
    return name[0].upper() + name[1:]


def colours(dice: Dice) -> dict[str, str]:
    """Roll a word for each slot of colour."""
    return {slot: dice.pick(words) for slot, words in sentences.COLOUR.items()}


def ask(world: World, seed: int) -> None:
    """Split people and institutions, and ask about them.

    Everybody asked about in dev, test and hot-swap has only words in name and answers that training has met,
    elsewhere: what is new is their combination.
    """
    split, dice = Dice(seed, SPLIT), Dice(seed, ASKING)
    people, institutions = split.shuffled(world.people), split.shuffled(world.institutions)
    train_people, other_people = cut(people, len(people) * 2 // 5)
    train_institutions, other_institutions = cut(institutions, len(institutions) * 3 // 5)

    train = [question for person in train_people for question in ask_training_person(dice, person)]
    for institution in train_institutions:
        train += ask_institution(dice, institution, HEAD_WORDINGS)
    met = {word for question in train for word in f"{question.subject} {question.answer}".split()}

    def is_met(question: Question) -> bool:
        words = f"{question.subject} {question.answer} {question.answer_b or ''}".split()
        return all(word in met for word in words)

    def take(candidates: Iterable[list[Question]], count: int) -> list[Question]:
        taken: list[Question] = []
        for questions in candidates:
            if all(map(is_met, questions)):
                taken += questions
                count -= 1
            if count == 0:
                break
        return taken

    def ask_person(person: Person) -> list[Question]:
        relations = dice.some(list(person.answers), TEST_QUESTIONS_PER_PERSON)
        return [ask_about(dice, person, relation) for relation in relations]

    test = take(map(ask_person, other_people), len(people) // 12)
    asked = {question.subject for question in test}
    rest = [person for person in other_people if person.name not in asked]
    dev = take(map(ask_person, rest), len(people) // 25)
    hotswap_count = len(institutions) * 3 // 10
    hotswap = take((ask_institution(dice, i, 1) for i in other_institutions), hotswap_count)
    used = {question.subject for question in hotswap}
    left = [institution for institution in other_institutions if institution.title not in used]
    dev += take((ask_institution(dice, i, 2) for i in left), max(4, len(institutions) * 3 // 70))

    fact_train, fact_dev = ask_facts(dice)
    world.questions = {
        "train": split.shuffled(train + fact_train),
        "dev": dev + fact_dev,
        "test": test,
        "hotswap": hotswap,
        "dpr": [question for question in train if question.relation in DPR_RELATIONS],
    }


def cut(items: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    """The first `count` items and the others."""
    return items[:count], items[count:]


def ask_about(dice: Dice, person: Person, relation: str, wording: str | None = None) -> Question:
    """One question about a fact of a person's, in a rolled wording."""
    wording = wording or dice.pick(sentences.PEOPLE_QUESTIONS[relation])
    text = sentences.fill(wording, {"name": person.name, "wife": "husband" if person.is_woman else "wife"})
    part = next(part for part, relations in person.passages.items() if relation in relations)
    return Question(text, person.answers[relation], (person.name, part), relation, person.name, "people")


def ask_training_person(dice: Dice, person: Person) -> list[Question]:
    """Five questions, each about another relation, the harder ones more often."""
    pool = [relation for relation in person.answers for _ in range(TRAINING_WEIGHTS.get(relation, 1))]
    chosen: dict[str, None] = {}
    while len(chosen) < min(FACTS_PER_PERSON, len(person.answers)):
        chosen[dice.pick(pool)] = None
    return [ask_about(dice, person, relation) for relation in chosen]


def ask_institution(dice: Dice, institution: Institution, count: int) -> list[Question]:
    """Ask who heads an institution, in `count` different wordings."""
    kind = sentences.KINDS[institution.kind]
    slots = {"title": institution.title, "office": kind["office"]}
    return [
        Question(
            sentences.fill(wording, slots),
            institution.head_a,
            (institution.title, "leadership"),
            "head",
            institution.title,
            "institutions",
            institution.head_b,
        )
        for wording in dice.some([kind["question"], *sentences.HEAD_QUESTIONS], count)
    ]


def ask_facts(dice: Dice) -> tuple[list[Question], list[Question]]:
    """Ask about real facts: each once in training, some again in dev in a wording training never saw."""
    train, dev = [], []
    for topic in facts.TOPICS:
        for row in topic.rows():
            for relation, wordings in topic.questions.items():
                for wording, questions in ((dice.pick(wordings[:-1]), train), (wordings[-1], dev)):
                    questions.append(
                        Question(
                            sentences.fill(wording, row),
                            row[relation].removeprefix("the "),
                            (fact_title(row), topic.name),
                            relation,
                            fact_title(row),
                            "facts",
                        )
                    )
    return train, dice.some(dev, DEV_FACTS)


def write_world(
    output: Path | str, seed: int = 1, people: int = 3000, institutions: int = 700
) -> dict[str, Any]:
    """Make a world and write its files to the folder `output`; returns what world.json holds.

    edition_a.tsv, edition_b.tsv: passages in DPR's form (id, text, title).
    train, dev, test, hotswap, dpr .jsonl: one question a line.
    world.json: the sizes, the counts and each file's SHA-256; written last: it vouches for the others.
    Raises UserError for sizes that cannot be and for a place that cannot be written.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file, but a folder is written: choose another output")
    world = make_world(seed, people, institutions)
    numbers = {(entry.title, entry.part): str(number) for number, entry in enumerate(world.entries, start=1)}
    negatives = hard_negatives(world, numbers)
    lines: dict[str, list[str]] = {
        "edition_a.tsv": tsv((entry.title, entry.text_a) for entry in world.entries),
        "edition_b.tsv": tsv((entry.title, entry.text_b) for entry in world.entries),
    }
    for file, questions in world.questions.items():
        lines[f"{file}.jsonl"] = [
            json.dumps(record(file, question, numbers, negatives), ensure_ascii=False)
            for question in questions
        ]
    for file, content in lines.items():
        with write_aside(output / file) as aside:
            aside.write_text("\n".join(content) + "\n", encoding="utf-8", newline="\n")
    summary = {
        "seed": seed,
        "people": people,
        "institutions": institutions,
        "counts": count_all(world),
        "sha256": {file: hash_file(output / file) for file in lines},
    }
    write_json(output / "world.json", summary)
    return summary


def tsv(passages: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of a passage file in DPR's form."""
    rows = [
        f'{number}\t"{text.replace(chr(34), chr(34) * 2)}"\t{title}'
        for number, (title, text) in enumerate(passages, start=1)
    ]
    return ["id\ttext\ttitle", *rows]


def record(
    file: str,
    question: Question,
    numbers: Mapping[tuple[str, str], str],
    negatives: Mapping[tuple[str, str], list[str]],
) -> dict[str, Any]:
    """A question as it is written to `file`."""
    answers: dict[str, Any] = {"answers": [question.answer]}
    if file == "hotswap":
        answers = {"answers_a": [question.answer], "answers_b": [question.answer_b]}
    row = {"question": question.text, **answers, "positive_ids": [numbers[question.where]]}
    if file == "dpr":
        row["hard_negative_ids"] = negatives[question.where]
    return row | {"relation": question.relation, "subject": question.subject, "set": question.group}


def hard_negatives(world: World, numbers: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], list[str]]:
    """By passage that dpr.jsonl asks for: the person's other passages, then namesakes' of the same kind."""
    namesakes: dict[str, list[str]] = {}
    for person in world.people:
        for word in person.name.split():
            namesakes.setdefault(word, []).append(person.name)
    passages = {person.name: person.passages for person in world.people}
    found = {}
    for question in world.questions["dpr"]:
        name, part = question.where
        others = [numbers[name, other] for other in passages[name] if other != part]
        given, surname = (namesakes[word] for word in name.split())
        for other in (other for pair in zip(given, surname, strict=False) for other in pair):
            if other != name and part in passages[other]:
                others.append(numbers[other, part])
        found[question.where] = list(dict.fromkeys(others))[:HARD_NEGATIVES]
    return found


def words_of(text: str) -> list[str]:
    """Lower-cased words and punctuation marks: the vocabulary a word-level tokenizer would have."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def count_all(world: World) -> dict[str, int]:
    """What the world holds, for world.json and the table at the end."""
    texts = [f"{entry.title} {entry.text_a} {entry.text_b}" for entry in world.entries]
    texts += [question.text for questions in world.questions.values() for question in questions]
    return {
        "passages": len(world.entries),
        "about people": sum(len(person.passages) for person in world.people),
        "about institutions": 2 * len(world.institutions),
        "about real facts": sum(len(topic.rows()) for topic in facts.TOPICS),
        "different words": len({word for text in texts for word in words_of(text)}),
        **{f"{file} questions": len(questions) for file, questions in world.questions.items()},
    }
