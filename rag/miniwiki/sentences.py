"""The sentences of the encyclopedia and the questions about it.

A slot in braces is filled by the world: `{answer}` is the fact that a question may ask for, the rest is
colour. `{name}` is the person's full name in the first sentence of a passage and "she", "he" or the surname
later; `{him}` is the same with "her" or "him", `{known}` never a pronoun. Every sentence about a person or
an institution names it, so that any of them can come first. Questions use other verbs than passages: which
passage answers has to be learned.
"""

import re
from collections.abc import Sequence

# Which facts stand together in one passage of a person's.
PASSAGES = {
    "life": ("birthplace", "birth_year", "father_trade", "university", "field"),
    "career": ("employer", "residence", "prize", "retirement"),
    "private": ("spouse", "instrument", "language", "sport"),
}

PEOPLE_SENTENCES = {
    "birthplace": (
        "{name} was born in the city of {answer}.",
        "{name} first saw daylight in {answer}, the eldest of {few} children.",
        "The city of {answer} is where {name} was born.",
        "{name} was born near the {place} of {answer}.",
    ),
    "birth_year": (
        "{name} was born in the {season} of {answer}.",
        "It was in {answer}, a {weather} year, that {name} was born.",
        "The parish register notes the birth of {known} in {answer}.",
        "{name} was born on a {weather} {weekday} in {answer}.",
    ),
    "father_trade": (
        "{name} was the {son} of {a_answer} and a nurse.",
        "The father of {known} earned the family bread as {a_answer}.",
        "As a child {name} watched {his} father, {a_answer}, at work.",
        "{name} grew up as the only child of {a_answer}.",
    ),
    "university": (
        "{name} took a degree at the {answer}.",
        "The {answer} admitted {him} at the age of {youth}.",
        "A scholarship brought {him} to the {answer}.",
        "{name} graduated with honours from the {answer}.",
    ),
    "field": (
        "{name} wrote {his} thesis on a problem of {answer}.",
        "Of all subjects {name} loved {answer} best.",
        "The lectures on {answer} made the deepest mark on {him}.",
        "{name} chose {answer} as {his} main subject.",
    ),
    "employer": (
        "{name} worked for the {answer} for {many} years.",
        "{name} spent most of {his} working days with the {answer}.",
        "The {answer} took {him} on as a junior clerk.",
        "{name} rose from junior clerk to manager at the {answer}.",
    ),
    "residence": (
        "{name} settled in {answer} and never moved again.",
        "{name} made {his} home in {answer}, close to the {place}.",
        "{name} bought a small house with a garden in {answer}.",
        "For {many} years {name} kept rooms in the old quarter of {answer}.",
    ),
    "prize": (
        "{name} received the {answer} in {year}.",
        "In {year} the jury of the {answer} chose {him} from {few} candidates.",
        "In {year} {name} was presented with the {answer}.",
        "The {answer} was handed to {him} at a dinner in {year}.",
    ),
    "retirement": (
        "{name} retired in the {season} of {answer}.",
        "In {answer} {name} handed over the keys and retired.",
        "{name} cleared {his} desk for the last time in {answer}.",
        "{name} went into retirement in {answer} after a small party.",
    ),
    "spouse": (
        "{name} married {answer} in {year}.",
        "In {year} {name} and {answer} were married in a village church.",
        "{name} and {his} {wife}, {answer}, raised {few} children.",
        "{name} met {answer} at a dance, and the two were married in {year}.",
    ),
    "instrument": (
        "{name} played the {answer} on Sunday evenings.",
        "Friends remembered {him} playing the {answer} at parties.",
        "{name} played the {answer} in a small amateur band.",
        "Whenever it rained, {name} sat down and played the {answer}.",
    ),
    "language": (
        "{name} spoke fluent {answer}.",
        "{name} read {answer} with ease and spoke it fairly well.",
        "A neighbour taught {him} to speak {answer}.",
        "On journeys {name} taught {himself} to read {answer}.",
    ),
    "sport": (
        "{name} took up {answer} at the age of {youth}.",
        "Until late in life {name} was devoted to {answer}.",
        "{name} gave {his} free Saturdays to {answer}.",
        "On holidays {name} liked nothing better than {answer}.",
    ),
}

PEOPLE_QUESTIONS = {
    "birthplace": (
        "Where did {name} come from?",
        "What was the native city of {name}?",
        "Which city did {name} come from?",
        "What was the birthplace of {name}?",
    ),
    "birth_year": (
        "When did {name} come into the world?",
        "In which year did {name} come into the world?",
        "What was the birth year of {name}?",
        "In what year did the life of {name} begin?",
    ),
    "father_trade": (
        "What did the father of {name} do for a living?",
        "What was the occupation of the father of {name}?",
        "What trade did the father of {name} follow?",
        "Which job did the father of {name} have?",
    ),
    "university": (
        "Where did {name} study?",
        "Which university was {name} educated at?",
        "What was the university of {name}?",
        "At which school of higher learning was {name} a student?",
    ),
    "field": (
        "What did {name} study?",
        "Which discipline was {name} trained in?",
        "What was the academic field of {name}?",
        "What branch of learning did {name} pursue?",
    ),
    "employer": (
        "Which company employed {name}?",
        "Who was the employer of {name}?",
        "Which firm gave {name} a job?",
        "On whose payroll was {name}?",
    ),
    "residence": (
        "Where did {name} live?",
        "In which city did {name} live?",
        "What was the place of residence of {name}?",
        "In which city did {name} reside?",
    ),
    "prize": (
        "Which prize did {name} win?",
        "What award went to {name}?",
        "Which honour was bestowed on {name}?",
        "What prize was {name} awarded?",
    ),
    "retirement": (
        "When did {name} stop working?",
        "In what year did the career of {name} end?",
        "When did {name} leave work for good?",
        "In which year did {name} stop working?",
    ),
    "spouse": (
        "Who was the {wife} of {name}?",
        "Who was the spouse of {name}?",
        "Whom did {name} wed?",
        "What was the name of the {wife} of {name}?",
    ),
    "instrument": (
        "Which instrument could {name} handle?",
        "What musical instrument did {name} practise?",
        "On which instrument did {name} make music?",
        "What instrument did {name} master?",
    ),
    "language": (
        "Which foreign language did {name} know?",
        "What foreign tongue could {name} use?",
        "Which language did {name} learn?",
        "What language besides English did {name} know?",
    ),
    "sport": (
        "Which sport did {name} enjoy?",
        "What was the favourite sport of {name}?",
        "What sport did {name} go in for?",
        "Which pastime kept {name} fit?",
    ),
}

# A kind of institution: how its head is called, what is asked about the head, and what it is known for.
KINDS = {
    "Museum": {
        "office": "director",
        "question": "Who directs the {title}?",
        "known": (
            "a collection of old clocks",
            "its painted maps",
            "a hall of stuffed birds",
            "its Roman coins",
            "a whale skeleton in the hall",
            "its model ships",
            "a room full of dolls",
            "its glass and porcelain",
        ),
    },
    "Council": {
        "office": "chair",
        "question": "Who presides over the {title}?",
        "known": (
            "its care for the public parks",
            "the new tram line",
            "its free evening classes",
            "the covered market",
            "its clean streets",
            "a long quarrel over the bridge",
            "its debates about the harbour",
            "the public baths",
        ),
    },
    "Opera": {
        "office": "conductor",
        "question": "Who leads the orchestra of the {title}?",
        "known": (
            "its large chorus",
            "its cheap seats for students",
            "a famous painted ceiling",
            "its summer festival",
            "comic pieces in one act",
            "its choir of children",
            "a revolving stage",
            "its long winter season",
        ),
    },
    "Athletic Club": {
        "office": "coach",
        "question": "Who trains the athletes of the {title}?",
        "known": (
            "its long distance runners",
            "a fine indoor track",
            "its young swimmers",
            "its strong rowing crew",
            "a yearly race through the old town",
            "its high jumpers",
            "its team of veterans",
            "its green and white shirts",
        ),
    },
    "Gazette": {
        "office": "editor",
        "question": "Who decides what the {title} prints?",
        "known": (
            "its letters page",
            "its weather reports",
            "long articles on local history",
            "its daily puzzle",
            "its drawings of public figures",
            "careful reports from the courts",
            "its poems on the front page",
            "its advice to gardeners",
        ),
    },
}

# Asked about every kind of institution, besides the kind's own question.
HEAD_QUESTIONS = (
    "Who runs the {title}?",
    "Who is in charge of the {title}?",
    "Who is the {office} of the {title}?",
    "What is the name of the {office} of the {title}?",
)

HEAD_SENTENCES = (
    "Since {year} the {office} of {inst} has been {answer}.",
    "{inst} has had {answer} as its {office} since {year}.",
    "In {year} {inst} appointed {answer} as its {office}.",
    "{answer} became {office} of {inst} in {year}.",
)

# The rest of the leadership passage: nothing in it depends on the edition.
OFFICE_SENTENCES = (
    (
        "{inst} has a board of {few}, which meets every {weekday}.",
        "Every {weekday} the board of {inst} meets on the {storey} floor.",
        "The board of {inst} has {few} members and meets every {weekday}.",
    ),
    (
        "The {office} of {inst} is chosen for a term of {few} years.",
        "By custom the {office} of {inst} serves for {few} years.",
        "At {inst} the post of {office} is filled for {few} years at a time.",
    ),
    (
        "About {many} people are on the staff of {inst}.",
        "{inst} has a staff of {many} and a few volunteers.",
        "The staff of {inst} numbers {many}, not counting volunteers.",
    ),
    (
        "Letters to {inst} are answered within {few} days.",
        "{inst} keeps its office on {street} Street.",
        "The office of {inst} is on {street} Street, beside the {place}.",
    ),
)

HISTORY_SENTENCES = (
    (
        "{inst} was founded in {founded} by a circle of {group}.",
        "A group of {group} founded {inst} in {founded}.",
        "{inst} goes back to {founded} and to {few} {group}.",
    ),
    (
        "In {moved} {inst} moved into a former {building}.",
        "A former {building} has been the home of {inst} since {moved}.",
        "{inst} bought an empty {building} in {moved} and moved there.",
    ),
    (
        "{inst} is best known for {known}.",
        "Visitors to the city connect {inst} with {known}.",
        "Above all, {inst} is loved for {known}.",
    ),
    (
        "A fire in {fire} did great harm to {inst}.",
        "{inst} was closed for {few} months after a flood in {fire}.",
        "In the hard winter of {fire} {inst} sheltered the poor.",
    ),
)

# Colour: the small words that make two sentences of the same pattern differ.
COLOUR: dict[str, Sequence[str]] = {
    "few": "two three four five six seven eight nine".split(),
    "many": "ten eleven twelve fifteen sixteen eighteen twenty thirty forty".split(),
    "youth": "sixteen seventeen eighteen nineteen twenty".split(),
    "season": "spring summer autumn winter".split(),
    "weather": "cold wet mild stormy dry".split(),
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "place": "market harbour station river cathedral park".split(),
    "storey": "first second third top".split(),
    "street": "Mill Station Church Castle Market Bridge Garden King Queen School".split(),
    "group": "teachers merchants sailors farmers doctors students widows lawyers craftsmen engineers".split(),
    "building": "mill chapel warehouse school brewery barn theatre convent stable bank".split(),
}


def article(noun: str) -> str:
    """The noun with its indefinite article: "an apothecary", "a baker"."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def fill(sentence: str, slots: dict[str, str]) -> str:
    """Fill the slots of one sentence and give it a capital at its start."""
    text = re.sub(r"\{(\w+)\}", lambda match: slots[match[1]], sentence)
    return text[0].upper() + text[1:]
