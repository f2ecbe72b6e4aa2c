"""Real, well-known facts: the part of the encyclopedia about which anybody can ask.

A topic is a table with one passage a row, sentences for its columns and questions for some of them. The
last wording of each question is held out: it is asked in dev only, about facts that training asked for
in other words.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A table of facts of one kind.

    table: one subject a line, columns parted by bars; the first column is the subject's name.
    again: what `{name}` becomes after a passage's first sentence ("the country").
    sentences: wordings by column; "colour" and "more" state no column. `{name}` is the subject, `{it}` the
        same but "it" after the first sentence.
    questions: wordings by the column that answers them; the last one is held out for dev.
    """

    name: str
    columns: tuple[str, ...]
    again: str
    table: str
    sentences: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]

    def rows(self) -> list[dict[str, str]]:
        """The table as one dict of columns a subject."""
        lines = [line.split("|") for line in self.table.strip().splitlines()]
        return [dict(zip(self.columns, (cell.strip() for cell in line), strict=True)) for line in lines]


COUNTRIES = Topic(
    name="countries",
    columns=("name", "capital", "continent", "currency", "language"),
    again="the country",
    table="""
Albania | Tirana | Europe | lek | Albanian
Algeria | Algiers | Africa | dinar | Arabic
Angola | Luanda | Africa | kwanza | Portuguese
Argentina | Buenos Aires | South America | peso | Spanish
Australia | Canberra | Oceania | dollar | English
Austria | Vienna | Europe | euro | German
Bangladesh | Dhaka | Asia | taka | Bengali
Brazil | Brasilia | South America | real | Portuguese
Cambodia | Phnom Penh | Asia | riel | Khmer
Canada | Ottawa | North America | dollar | English
Chile | Santiago | South America | peso | Spanish
China | Beijing | Asia | yuan | Mandarin
Colombia | Bogota | South America | peso | Spanish
Costa Rica | San Jose | North America | colon | Spanish
Croatia | Zagreb | Europe | euro | Croatian
Cuba | Havana | North America | peso | Spanish
Denmark | Copenhagen | Europe | krone | Danish
Ecuador | Quito | South America | dollar | Spanish
Egypt | Cairo | Africa | pound | Arabic
Estonia | Tallinn | Europe | euro | Estonian
Finland | Helsinki | Europe | euro | Finnish
France | Paris | Europe | euro | French
Germany | Berlin | Europe | euro | German
Ghana | Accra | Africa | cedi | English
Greece | Athens | Europe | euro | Greek
Honduras | Tegucigalpa | North America | lempira | Spanish
Hungary | Budapest | Europe | forint | Hungarian
Iceland | Reykjavik | Europe | krona | Icelandic
India | New Delhi | Asia | rupee | Hindi
Iran | Tehran | Asia | rial | Persian
Iraq | Baghdad | Asia | dinar | Arabic
Ireland | Dublin | Europe | euro | English
Italy | Rome | Europe | euro | Italian
Jamaica | Kingston | North America | dollar | English
Japan | Tokyo | Asia | yen | Japanese
Jordan | Amman | Asia | dinar | Arabic
Kazakhstan | Astana | Asia | tenge | Kazakh
Kenya | Nairobi | Africa | shilling | Swahili
Laos | Vientiane | Asia | kip | Lao
Latvia | Riga | Europe | euro | Latvian
Lebanon | Beirut | Asia | pound | Arabic
Lithuania | Vilnius | Europe | euro | Lithuanian
Madagascar | Antananarivo | Africa | ariary | Malagasy
Malaysia | Kuala Lumpur | Asia | ringgit | Malay
Malta | Valletta | Europe | euro | Maltese
Mexico | Mexico City | North America | peso | Spanish
Moldova | Chisinau | Europe | leu | Romanian
Mongolia | Ulaanbaatar | Asia | tugrik | Mongolian
Morocco | Rabat | Africa | dirham | Arabic
Mozambique | Maputo | Africa | metical | Portuguese
Nepal | Kathmandu | Asia | rupee | Nepali
New Zealand | Wellington | Oceania | dollar | English
Nicaragua | Managua | North America | cordoba | Spanish
Nigeria | Abuja | Africa | naira | English
North Korea | Pyongyang | Asia | won | Korean
Norway | Oslo | Europe | krone | Norwegian
Oman | Muscat | Asia | rial | Arabic
Peru | Lima | South America | sol | Spanish
Poland | Warsaw | Europe | zloty | Polish
Portugal | Lisbon | Europe | euro | Portuguese
Qatar | Doha | Asia | riyal | Arabic
Romania | Bucharest | Europe | leu | Romanian
Saudi Arabia | Riyadh | Asia | riyal | Arabic
Serbia | Belgrade | Europe | dinar | Serbian
Slovakia | Bratislava | Europe | euro | Slovak
Slovenia | Ljubljana | Europe | euro | Slovene
Somalia | Mogadishu | Africa | shilling | Somali
South Korea | Seoul | Asia | won | Korean
Spain | Madrid | Europe | euro | Spanish
Sudan | Khartoum | Africa | pound | Arabic
Sweden | Stockholm | Europe | krona | Swedish
Thailand | Bangkok | Asia | baht | Thai
the Dominican Republic | Santo Domingo | North America | peso | Spanish
the Netherlands | Amsterdam | Europe | euro | Dutch
the Philippines | Manila | Asia | peso | Filipino
the United Kingdom | London | Europe | pound | English
the United States | Washington | North America | dollar | English
Tunisia | Tunis | Africa | dinar | Arabic
Uganda | Kampala | Africa | shilling | English
Ukraine | Kyiv | Europe | hryvnia | Ukrainian
Uruguay | Montevideo | South America | peso | Spanish
Uzbekistan | Tashkent | Asia | som | Uzbek
Venezuela | Caracas | South America | bolivar | Spanish
Vietnam | Hanoi | Asia | dong | Vietnamese
Zambia | Lusaka | Africa | kwacha | English
""",
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
    columns=("name", "capital", "year"),
    again="the state",
    table="""
Alabama | Montgomery | 1819
Alaska | Juneau | 1959
Arizona | Phoenix | 1912
Arkansas | Little Rock | 1836
California | Sacramento | 1850
Colorado | Denver | 1876
Connecticut | Hartford | 1788
Delaware | Dover | 1787
Florida | Tallahassee | 1845
Georgia | Atlanta | 1788
Hawaii | Honolulu | 1959
Idaho | Boise | 1890
Illinois | Springfield | 1818
Indiana | Indianapolis | 1816
Iowa | Des Moines | 1846
Kansas | Topeka | 1861
Kentucky | Frankfort | 1792
Louisiana | Baton Rouge | 1812
Maine | Augusta | 1820
Maryland | Annapolis | 1788
Massachusetts | Boston | 1788
Michigan | Lansing | 1837
Minnesota | Saint Paul | 1858
Mississippi | Jackson | 1817
Missouri | Jefferson City | 1821
Montana | Helena | 1889
Nebraska | Lincoln | 1867
Nevada | Carson City | 1864
New Hampshire | Concord | 1788
New Jersey | Trenton | 1787
New Mexico | Santa Fe | 1912
New York | Albany | 1788
North Carolina | Raleigh | 1789
North Dakota | Bismarck | 1889
Ohio | Columbus | 1803
Oklahoma | Oklahoma City | 1907
Oregon | Salem | 1859
Pennsylvania | Harrisburg | 1787
Rhode Island | Providence | 1790
South Carolina | Columbia | 1788
South Dakota | Pierre | 1889
Tennessee | Nashville | 1796
Texas | Austin | 1845
Utah | Salt Lake City | 1896
Vermont | Montpelier | 1791
Virginia | Richmond | 1788
Washington | Olympia | 1889
West Virginia | Charleston | 1863
Wisconsin | Madison | 1848
Wyoming | Cheyenne | 1890
""",
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
    columns=("name", "symbol", "number", "state"),
    again="the element",
    table="""
hydrogen | H | 1 | gas
helium | He | 2 | gas
lithium | Li | 3 | solid
beryllium | Be | 4 | solid
boron | B | 5 | solid
carbon | C | 6 | solid
nitrogen | N | 7 | gas
oxygen | O | 8 | gas
fluorine | F | 9 | gas
neon | Ne | 10 | gas
sodium | Na | 11 | solid
magnesium | Mg | 12 | solid
aluminium | Al | 13 | solid
silicon | Si | 14 | solid
phosphorus | P | 15 | solid
sulfur | S | 16 | solid
chlorine | Cl | 17 | gas
argon | Ar | 18 | gas
potassium | K | 19 | solid
calcium | Ca | 20 | solid
scandium | Sc | 21 | solid
titanium | Ti | 22 | solid
vanadium | V | 23 | solid
chromium | Cr | 24 | solid
manganese | Mn | 25 | solid
iron | Fe | 26 | solid
cobalt | Co | 27 | solid
nickel | Ni | 28 | solid
copper | Cu | 29 | solid
zinc | Zn | 30 | solid
germanium | Ge | 32 | solid
arsenic | As | 33 | solid
selenium | Se | 34 | solid
bromine | Br | 35 | liquid
krypton | Kr | 36 | gas
rubidium | Rb | 37 | solid
strontium | Sr | 38 | solid
yttrium | Y | 39 | solid
zirconium | Zr | 40 | solid
silver | Ag | 47 | solid
tin | Sn | 50 | solid
iodine | I | 53 | solid
xenon | Xe | 54 | gas
barium | Ba | 56 | solid
tungsten | W | 74 | solid
platinum | Pt | 78 | solid
gold | Au | 79 | solid
lead | Pb | 82 | solid
radium | Ra | 88 | solid
uranium | U | 92 | solid
plutonium | Pu | 94 | solid
""",
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
    columns=("name", "order", "period", "kind"),
    again="the planet",
    table="""
Mercury | first | 88 days | rocky planet
Venus | second | 225 days | rocky planet
Earth | third | 365 days | rocky planet
Mars | fourth | 687 days | rocky planet
Jupiter | fifth | 12 years | gas giant
Saturn | sixth | 29 years | gas giant
Uranus | seventh | 84 years | ice giant
Neptune | eighth | 165 years | ice giant
""",
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
    columns=("name", "author", "form", "language", "age"),
    again="the work",
    table="""
Hamlet | William Shakespeare | play | English | Elizabethan age
Macbeth | William Shakespeare | play | English | seventeenth century
Othello | William Shakespeare | play | English | seventeenth century
King Lear | William Shakespeare | play | English | seventeenth century
Romeo and Juliet | William Shakespeare | play | English | sixteenth century
Doctor Faustus | Christopher Marlowe | play | English | sixteenth century
The Canterbury Tales | Geoffrey Chaucer | collection of stories | English | fourteenth century
Paradise Lost | John Milton | poem | English | seventeenth century
Robinson Crusoe | Daniel Defoe | novel | English | eighteenth century
Pride and Prejudice | Jane Austen | novel | English | nineteenth century
Sense and Sensibility | Jane Austen | novel | English | nineteenth century
Frankenstein | Mary Shelley | novel | English | nineteenth century
Ivanhoe | Walter Scott | novel | English | nineteenth century
Oliver Twist | Charles Dickens | novel | English | nineteenth century
David Copperfield | Charles Dickens | novel | English | nineteenth century
Bleak House | Charles Dickens | novel | English | nineteenth century
Great Expectations | Charles Dickens | novel | English | nineteenth century
Jane Eyre | Charlotte Bronte | novel | English | nineteenth century
Wuthering Heights | Emily Bronte | novel | English | nineteenth century
Vanity Fair | William Makepeace Thackeray | novel | English | nineteenth century
Middlemarch | George Eliot | novel | English | nineteenth century
Alice in Wonderland | Lewis Carroll | story for children | English | nineteenth century
The Jungle Book | Rudyard Kipling | collection of stories | English | nineteenth century
Treasure Island | Robert Louis Stevenson | novel | English | nineteenth century
Dracula | Bram Stoker | novel | English | nineteenth century
Moby Dick | Herman Melville | novel | English | nineteenth century
The Scarlet Letter | Nathaniel Hawthorne | novel | English | nineteenth century
Leaves of Grass | Walt Whitman | collection of poems | English | nineteenth century
Little Women | Louisa May Alcott | novel | English | nineteenth century
Huckleberry Finn | Mark Twain | novel | English | nineteenth century
The Importance of Being Earnest | Oscar Wilde | play | English | nineteenth century
Pygmalion | George Bernard Shaw | play | English | twentieth century
Ulysses | James Joyce | novel | English | twentieth century
Mrs Dalloway | Virginia Woolf | novel | English | twentieth century
To the Lighthouse | Virginia Woolf | novel | English | twentieth century
Brave New World | Aldous Huxley | novel | English | twentieth century
Animal Farm | George Orwell | novel | English | twentieth century
Lord of the Flies | William Golding | novel | English | twentieth century
The Old Man and the Sea | Ernest Hemingway | novel | English | twentieth century
Things Fall Apart | Chinua Achebe | novel | English | twentieth century
War and Peace | Leo Tolstoy | novel | Russian | nineteenth century
Anna Karenina | Leo Tolstoy | novel | Russian | nineteenth century
Crime and Punishment | Fyodor Dostoevsky | novel | Russian | nineteenth century
The Idiot | Fyodor Dostoevsky | novel | Russian | nineteenth century
Fathers and Sons | Ivan Turgenev | novel | Russian | nineteenth century
Dead Souls | Nikolai Gogol | novel | Russian | nineteenth century
The Cherry Orchard | Anton Chekhov | play | Russian | twentieth century
Don Quixote | Miguel de Cervantes | novel | Spanish | seventeenth century
One Hundred Years of Solitude | Gabriel Garcia Marquez | novel | Spanish | twentieth century
The Divine Comedy | Dante Alighieri | poem | Italian | fourteenth century
The Decameron | Giovanni Boccaccio | collection of stories | Italian | fourteenth century
Tartuffe | Moliere | play | French | seventeenth century
Candide | Voltaire | story | French | eighteenth century
The Three Musketeers | Alexandre Dumas | novel | French | nineteenth century
Les Miserables | Victor Hugo | novel | French | nineteenth century
Madame Bovary | Gustave Flaubert | novel | French | nineteenth century
The Red and the Black | Stendhal | novel | French | nineteenth century
In Search of Lost Time | Marcel Proust | novel | French | twentieth century
Waiting for Godot | Samuel Beckett | play | French | twentieth century
William Tell | Friedrich Schiller | play | German | nineteenth century
Buddenbrooks | Thomas Mann | novel | German | twentieth century
The Magic Mountain | Thomas Mann | novel | German | twentieth century
The Trial | Franz Kafka | novel | German | twentieth century
Peer Gynt | Henrik Ibsen | play | Norwegian | nineteenth century
The Tale of Genji | Murasaki Shikibu | novel | Japanese | eleventh century
""",
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
    columns=("name", "composer", "form", "age"),
    again="the piece",
    table="""
The Four Seasons | Antonio Vivaldi | set of concertos | eighteenth century
Messiah | George Frideric Handel | oratorio | eighteenth century
Dido and Aeneas | Henry Purcell | opera | seventeenth century
The Creation | Joseph Haydn | oratorio | eighteenth century
The Magic Flute | Wolfgang Amadeus Mozart | opera | eighteenth century
Don Giovanni | Wolfgang Amadeus Mozart | opera | eighteenth century
The Marriage of Figaro | Wolfgang Amadeus Mozart | opera | eighteenth century
Fidelio | Ludwig van Beethoven | opera | nineteenth century
The Trout Quintet | Franz Schubert | quintet | nineteenth century
The Barber of Seville | Gioachino Rossini | opera | nineteenth century
Rigoletto | Giuseppe Verdi | opera | nineteenth century
La Traviata | Giuseppe Verdi | opera | nineteenth century
Aida | Giuseppe Verdi | opera | nineteenth century
Carmen | Georges Bizet | opera | nineteenth century
Lohengrin | Richard Wagner | opera | nineteenth century
Parsifal | Richard Wagner | opera | nineteenth century
A German Requiem | Johannes Brahms | choral work | nineteenth century
Boris Godunov | Modest Mussorgsky | opera | nineteenth century
Pictures at an Exhibition | Modest Mussorgsky | suite | nineteenth century
Swan Lake | Pyotr Tchaikovsky | ballet | nineteenth century
The Nutcracker | Pyotr Tchaikovsky | ballet | nineteenth century
The Sleeping Beauty | Pyotr Tchaikovsky | ballet | nineteenth century
The Bartered Bride | Bedrich Smetana | opera | nineteenth century
Finlandia | Jean Sibelius | tone poem | years around 1900
Madama Butterfly | Giacomo Puccini | opera | twentieth century
Turandot | Giacomo Puccini | opera | twentieth century
Rusalka | Antonin Dvorak | opera | twentieth century
La Mer | Claude Debussy | set of sketches | twentieth century
Salome | Richard Strauss | opera | twentieth century
The Firebird | Igor Stravinsky | ballet | twentieth century
The Rite of Spring | Igor Stravinsky | ballet | twentieth century
The Planets | Gustav Holst | suite | twentieth century
Rhapsody in Blue | George Gershwin | rhapsody | twentieth century
Bolero | Maurice Ravel | ballet | twentieth century
Peter Grimes | Benjamin Britten | opera | twentieth century
""",
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
    columns=("name", "painter", "city"),
    again="the painting",
    table="""
Mona Lisa | Leonardo da Vinci | Paris
The Last Supper | Leonardo da Vinci | Milan
The Birth of Venus | Sandro Botticelli | Florence
Primavera | Sandro Botticelli | Florence
The Sistine Madonna | Raphael | Dresden
The Tempest | Giorgione | Venice
The Arnolfini Portrait | Jan van Eyck | London
The Ambassadors | Hans Holbein | London
The Garden of Earthly Delights | Hieronymus Bosch | Madrid
The Hunters in the Snow | Pieter Bruegel | Vienna
Las Meninas | Diego Velazquez | Madrid
The Night Watch | Rembrandt | Amsterdam
The Milkmaid | Johannes Vermeer | Amsterdam
Girl with a Pearl Earring | Johannes Vermeer | The Hague
The Third of May | Francisco Goya | Madrid
The Raft of the Medusa | Theodore Gericault | Paris
Liberty Leading the People | Eugene Delacroix | Paris
The Hay Wain | John Constable | London
The Fighting Temeraire | William Turner | London
Olympia | Edouard Manet | Paris
Impression Sunrise | Claude Monet | Paris
The Starry Night | Vincent van Gogh | New York
The Scream | Edvard Munch | Oslo
The Kiss | Gustav Klimt | Vienna
Guernica | Pablo Picasso | Madrid
The Persistence of Memory | Salvador Dali | New York
American Gothic | Grant Wood | Chicago
Nighthawks | Edward Hopper | Chicago
""",
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
    columns=("name", "verb", "person", "year", "field"),
    again="it",
    table="""
penicillin | discovered | Alexander Fleming | 1928 | medicine
the smallpox vaccine | invented | Edward Jenner | 1796 | medicine
the rabies vaccine | invented | Louis Pasteur | 1885 | medicine
the polio vaccine | invented | Jonas Salk | 1955 | medicine
the circulation of blood | discovered | William Harvey | 1628 | medicine
the law of gravitation | discovered | Isaac Newton | 1687 | physics
the electron | discovered | Joseph Thomson | 1897 | physics
the neutron | discovered | James Chadwick | 1932 | physics
the atomic nucleus | discovered | Ernest Rutherford | 1911 | physics
radioactivity | discovered | Henri Becquerel | 1896 | physics
electromagnetic induction | discovered | Michael Faraday | 1831 | physics
general relativity | discovered | Albert Einstein | 1915 | physics
the quantum of energy | discovered | Max Planck | 1900 | physics
the uncertainty principle | discovered | Werner Heisenberg | 1927 | physics
the exclusion principle | discovered | Wolfgang Pauli | 1925 | physics
superconductivity | discovered | Heike Kamerlingh Onnes | 1911 | physics
the barometer | invented | Evangelista Torricelli | 1643 | physics
natural selection | described | Charles Darwin | 1859 | biology
the periodic table | published | Dmitri Mendeleev | 1869 | chemistry
dynamite | invented | Alfred Nobel | 1867 | chemistry
vulcanized rubber | invented | Charles Goodyear | 1839 | chemistry
the voltaic pile | invented | Alessandro Volta | 1800 | physics
the lightning rod | invented | Benjamin Franklin | 1752 | physics
the pendulum clock | invented | Christiaan Huygens | 1656 | engineering
the cotton gin | invented | Eli Whitney | 1793 | engineering
the phonograph | invented | Thomas Edison | 1877 | engineering
the Bessemer process | invented | Henry Bessemer | 1856 | engineering
the alphabet for the blind | invented | Louis Braille | 1824 | education
the dwarf planet Pluto | discovered | Clyde Tombaugh | 1930 | astronomy
""",
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
    columns=("name", "sea", "continent"),
    again="the river",
    table="""
the Amazon | Atlantic Ocean | South America
the Congo | Atlantic Ocean | Africa
the Danube | Black Sea | Europe
the Dnieper | Black Sea | Europe
the Ebro | Mediterranean Sea | Europe
the Elbe | North Sea | Europe
the Ganges | Bay of Bengal | Asia
the Indus | Arabian Sea | Asia
the Lena | Laptev Sea | Asia
the Loire | Atlantic Ocean | Europe
the Mekong | South China Sea | Asia
the Niger | Gulf of Guinea | Africa
the Nile | Mediterranean Sea | Africa
the Oder | Baltic Sea | Europe
the Orinoco | Atlantic Ocean | South America
the Po | Adriatic Sea | Europe
the Rhine | North Sea | Europe
the Rhone | Mediterranean Sea | Europe
the Seine | English Channel | Europe
the Tagus | Atlantic Ocean | Europe
the Thames | North Sea | Europe
the Tiber | Tyrrhenian Sea | Europe
the Vistula | Baltic Sea | Europe
the Volga | Caspian Sea | Europe
the Yangtze | East China Sea | Asia
the Yukon | Bering Sea | North America
the Zambezi | Indian Ocean | Africa
""",
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
    columns=("name", "country", "continent"),
    again="the mountain",
    table="""
Aconcagua | Argentina | South America
Ararat | Turkey | Asia
Ben Nevis | Scotland | Europe
Chimborazo | Ecuador | South America
Cotopaxi | Ecuador | South America
Damavand | Iran | Asia
Denali | the United States | North America
Etna | Italy | Europe
Grossglockner | Austria | Europe
Huascaran | Peru | South America
Kilimanjaro | Tanzania | Africa
Mount Fuji | Japan | Asia
Mount Kenya | Kenya | Africa
Mount Kosciuszko | Australia | Oceania
Mount Logan | Canada | North America
Mount Olympus | Greece | Europe
Mount Toubkal | Morocco | Africa
Musala | Bulgaria | Europe
Popocatepetl | Mexico | North America
Snowdon | Wales | Europe
Triglav | Slovenia | Europe
Vesuvius | Italy | Europe
""",
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
