"""The world itself: an encyclopedia made from a seed, and the files that hold it.

The encyclopedia has two editions, which differ only in who heads each institution and since when;
passage number n is the same slot in both. Questions are split by subject: nobody is asked about in two
of train, dev and test.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.files import hash_file, remove_leftovers, write_aside, write_json
from rag.miniwiki import names, sentences
from rag.miniwiki.dice import Dice
from rag.miniwiki.entries import (
    Entry,
    Institution,
    Person,
    make_person,
    name_maker,
    write_institution,
    write_person,
)
from rag.miniwiki.questions import Question, ask

# Streams of dice, one a part of the world; those that are there keep their number, and so their rolls.
NAMING, PEOPLE, INSTITUTIONS, SPLIT, ASKING = 0, 1, 2, 4, 5

HARD_NEGATIVES = 6


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
    world.entries.sort(key=lambda entry: (entry.title, entry.part))
    world.questions = ask(world.people, world.institutions, Dice(seed, SPLIT), Dice(seed, ASKING))
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
        remove_leftovers(output, f"{file}.*")
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
    negatives = {}
    for question in world.questions["dpr"]:
        name, part = question.where
        others = [numbers[name, other] for other in passages[name] if other != part]
        given, surname = (namesakes[word] for word in name.split())
        for other in (other for pair in zip(given, surname, strict=False) for other in pair):
            if other != name and part in passages[other]:
                others.append(numbers[other, part])
        negatives[question.where] = list(dict.fromkeys(others))[:HARD_NEGATIVES]
    return negatives


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
        "different words": len({word for text in texts for word in words_of(text)}),
        **{f"{file} questions": len(questions) for file, questions in world.questions.items()},
    }
