"""Real, well-known facts: the part of the encyclopedia about which anybody can ask.

A topic is a table with one passage a row, sentences for its columns and questions for some of them. The tables are
files in tables/. The last wording of each question is held out: it is asked in dev only, about facts that training
asked for in other words.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).with_name("tables")


@dataclass(frozen=True)
class Topic:
    """A table of facts of one kind.

    name: of its table, tables/<name>.tsv: one subject a line, whose name is the first column.
    again: what `{name}` becomes after a passage's first sentence ("the country").
    sentences: wordings by column; "colour" and "more" state no column. `{name}` is the subject, `{it}` the
        same but "it" after the first sentence.
    questions: wordings by the column that answers them; the last one is held out for dev.
    """

    name: str
    again: str
    sentences: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]

    def rows(self) -> list[dict[str, str]]:
        """The table as one dict of columns a subject."""
        with open(TABLES / f"{self.name}.tsv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True))


COUNTRIES = Topic(
    name="countries",
    again="the country",
    sentences={
        "capital": ("The capital of {name} is {capital}.", "{capital} is the capital of {name}."),
        "continent": ("{it} is a country in {continent}.", "{it} lies in {continent}."),
        "currency": (
            "People in {name} pay with the {currency}.",
            "The currency of {name} is the {currency}.",
        ),
        "language": (
            "The main language of {name} is {language}.",
            "Travellers to {name} do well to learn some {language}.",
        ),
        "colour": (
            "Stamps and coins of {name} are collected all over the world.",
            "The flag of {name} is easy to recognize.",
        ),
    },
    questions={
        "capital": (
            "What is the capital of {name}?",
            "Which city is the capital of {name}?",
            "What is the capital city of {name} called?",
        ),
        "continent": (
            "On which continent is {name}?",
            "In which part of the world is {name}?",
            "Which continent does {name} belong to?",
        ),
        "currency": (
            "What is the currency of {name}?",
            "What money is used in {name}?",
            "Which currency do people in {name} use?",
        ),
        "language": (
            "What language is spoken in {name}?",
            "Which language do people in {name} speak?",
            "What do people in {name} speak?",
        ),
    },
)

STATES = Topic(
    name="states",
    again="the state",
    sentences={
        "capital": ("The capital of {name} is {capital}.", "The government of {name} meets in {capital}."),
        "year": (
            "{it} was admitted to the Union in {year}.",
            "The Union has counted {name} as a member since {year}.",
        ),
        "colour": (
            "{it} is one of the fifty states of the United States.",
            "{it} sends two senators to Congress, as every state does.",
        ),
    },
    questions={
        "capital": (
            "What is the capital of {name}?",
            "Which city is the capital of {name}?",
            "What is the capital city of {name} called?",
        ),
        "year": (
            "When did {name} join the United States?",
            "In which year did {name} join the United States?",
            "Since which year has {name} been a state?",
        ),
    },
)

ELEMENTS = Topic(
    name="elements",
    again="the element",
    sentences={
        "symbol": ("Chemists write {symbol} for {name}.", "In formulas {name} is written as {symbol}."),
        "number": (
            "The number of protons in an atom of {name} is {number}.",
            "With {number} as its atomic number, {name} has a fixed place in the periodic table.",
        ),
        "state": ("At room temperature {name} is a {state}.", "In a warm room {name} is a {state}."),
        "colour": (
            "{it} is one of the chemical elements that pupils meet at school.",
            "{it} cannot be split into simpler substances by heating.",
        ),
    },
    questions={
        "symbol": (
            "What is the chemical symbol of {name}?",
            "What is the symbol for {name}?",
            "Which letters stand for {name}?",
        ),
        "number": (
            "What is the atomic number of {name}?",
            "Which atomic number does {name} have?",
            "How many protons does {name} have?",
        ),
    },
)

PLANETS = Topic(
    name="planets",
    again="the planet",
    sentences={
        "order": (
            "{it} is the {order} planet from the Sun.",
            "Counted from the Sun, {it} comes {order}.",
        ),
        "period": (
            "A journey round the Sun takes {it} about {period}.",
            "{name} goes round the Sun once in about {period}.",
        ),
        "kind": ("Astronomers call {it} {a_kind}.", "{it} is {a_kind}."),
        "colour": (
            "Space probes have sent home many pictures of {name}.",
            "{it} belongs to the eight planets of the solar system.",
        ),
    },
    questions={
        "order": (
            "What number is {name} from the Sun?",
            "At what place from the Sun is {name}?",
            "Which planet from the Sun is {name}?",
        ),
        "period": (
            "How long is a year on {name}?",
            "How long does {name} take to circle the Sun?",
            "How much time does {name} need for one orbit?",
        ),
        "kind": (
            "What kind of planet is {name}?",
            "What sort of planet is {name}?",
            "To which type of planet does {name} belong?",
        ),
    },
)

BOOKS = Topic(
    name="books",
    again="the work",
    sentences={
        "author": ("{it} is by {author}.", "{author} is the author of {name}."),
        "form": (
            "{it} is {a_form} that is found in almost every library.",
            "{it} is {a_form} that many readers know from school.",
        ),
        "language": ("The original text of {name} is in {language}.", "{it} was written in {language}."),
        "age": ("{it} dates from the {age}.", "Readers have known {name} since the {age}."),
    },
    questions={
        "author": ("Who wrote {name}?", "Who is the writer of {name}?", "Which writer gave us {name}?"),
        "language": (
            "In which language did the author write {name}?",
            "In what language is {name}?",
            "Which language is the original of {name} in?",
        ),
    },
)

MUSIC = Topic(
    name="music",
    again="the piece",
    sentences={
        "composer": (
            "The composer of {name} is {composer}.",
            "The notes of {name} were set down by {composer}.",
        ),
        "form": (
            "{it} is {a_form} that is heard all over the world.",
            "{it} is {a_form} that has a firm place in concert life.",
        ),
        "age": ("{it} dates from the {age}.", "{it} was first heard in the {age}."),
        "colour": ("There are many good recordings of {name}.", "Students of music like to analyse {name}."),
    },
    questions={
        "composer": (
            "Who composed {name}?",
            "Who wrote the music of {name}?",
            "Which musician created {name}?",
        ),
        "form": (
            "What kind of piece is {name}?",
            "What sort of music is {name}?",
            "What type of composition is {name}?",
        ),
    },
)

PAINTINGS = Topic(
    name="paintings",
    again="the painting",
    sentences={
        "painter": ("{it} is the work of {painter}.", "The brush of {painter} gave {it} to the world."),
        "city": (
            "Today {name} can be seen in {city}.",
            "Art lovers go to {city} to stand before {it}.",
        ),
        "colour": (
            "{it} is printed on countless posters and postcards.",
            "Art books seldom leave out {name}.",
        ),
        "more": (
            "Many younger artists have made copies of {name}.",
            "Teachers of drawing often show {name} to their pupils.",
        ),
    },
    questions={
        "painter": ("Who painted {name}?", "Which artist painted {name}?", "Who is the artist of {name}?"),
        "city": (
            "Where is {name} kept?",
            "In which city is {name} on show?",
            "Which city can show {name}?",
        ),
    },
)

DISCOVERIES = Topic(
    name="discoveries",
    again="it",
    sentences={
        "person": (
            "The credit for {it} usually goes to {person}.",
            "The name of {person} is linked with {it} for ever.",
        ),
        "year": (
            "The year most often given for {it} is {year}.",
            "Most books date {it} to {year}.",
        ),
        "field": (
            "{it} has a firm place in the history of {field}.",
            "Students of {field} learn about {it} early.",
        ),
        "colour": (
            "Pupils often hear the story of {it} at school.",
            "Whole books have been written about {it}.",
        ),
    },
    questions={
        "person": (
            "Who {verb} {name}?",
            "By whom was {name} {verb}?",
            "Which person {verb} {name}?",
        ),
        "year": (
            "When was {name} {verb}?",
            "In which year was {name} {verb}?",
            "What is the date of {name}?",
        ),
    },
)

RIVERS = Topic(
    name="rivers",
    again="the river",
    sentences={
        "sea": ("At its mouth {name} meets the {sea}.", "The water of {name} runs into the {sea}."),
        "continent": (
            "{it} is a long river in {continent}.",
            "Among the rivers of {continent}, {it} is well known.",
        ),
        "colour": (
            "Fishing boats and ferries are at work on {name}.",
            "People have lived along {name} for thousands of years.",
        ),
        "more": (
            "Travellers like to watch the sun go down over {name}.",
            "After heavy rain {it} can rise quickly.",
        ),
    },
    questions={
        "sea": (
            "Where does {name} end?",
            "Into which sea does {name} flow?",
            "Which sea or ocean does {name} reach?",
        ),
        "continent": (
            "On which continent is {name}?",
            "Through which continent does {name} flow?",
            "Which continent does {name} belong to?",
        ),
    },
)

MOUNTAINS = Topic(
    name="mountains",
    again="the mountain",
    sentences={
        "country": ("{it} stands in {country}.", "The people of {country} are proud of {name}."),
        "continent": (
            "{it} is a famous mountain of {continent}.",
            "{it} is known to climbers all over {continent}.",
        ),
        "colour": (
            "On a clear day {name} can be seen from far away.",
            "The weather on {name} can change within an hour.",
        ),
        "more": (
            "Photographs of {name} are sold in many shops.",
            "Experienced climbers know several routes on {name}.",
        ),
    },
    questions={
        "country": (
            "Where is {name}?",
            "In which country is {name}?",
            "Which country does {name} belong to?",
        ),
        "continent": (
            "On which continent is {name}?",
            "In which part of the world is {name}?",
            "Which continent does {name} belong to?",
        ),
    },
)

TOPICS = (
    COUNTRIES,
    STATES,
    ELEMENTS,
    PLANETS,
    BOOKS,
    MUSIC,
    PAINTINGS,
    DISCOVERIES,
    RIVERS,
    MOUNTAINS,
)
