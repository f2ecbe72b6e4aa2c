"""The words of which the world is made: names of people, cities and things.

A person's name is a given name and a surname, an institution's a city and a kind. Every single word belongs
to many people or places; what is new about an unseen person is only the combination. So a model trained on
some people has met every word it needs for the others, and nothing but a passage can tell it the answer.

No word stands in two of the lists of names (given names, surnames, cities): lower-cased, each has one
meaning.
"""

WOMEN = """
Abigail Ada Adele Agatha Agnes Aileen Alba Alice Alma Amanda Amelia Amy Andrea Angela Anita Anna Annette
Antonia Astrid Audrey Barbara Beatrice Belinda Bertha Bettina Bianca Brenda Bridget Camilla Carla Carmen
Caroline Cecilia Celia Charlotte Christina Clara Claudia Constance Cora Cordelia Cornelia Cynthia Daphne
Deborah Delia Diana Dora Doris Dorothy Edith Edna Eileen Elaine Eleanor Elena Elisa Elizabeth Ella Ellen
Elsa Elvira Emily Emma Erica Esther Ethel Eugenia Eunice Eva Evelyn Felicia Fiona Flora Frances
Frieda Gabriela Gemma Genevieve Gertrude Gilda Gloria Greta Gudrun Gwen Hannah Harriet Hedwig Helen Helga
Henrietta Hilda Ida Ines Ingrid Irene Isabel Jane Janet Jean Jessica Joan Josephine Judith Julia Karen
Katherine Laura Leah Lena Leonora Lillian Linda Lisa Lois Louisa Lucy Lydia Mabel Madeleine Magda Margaret
Maria Marianne Marion Martha Mary Matilda Maud Melissa Mildred Minna Miriam Molly Monica Muriel Myra Nadia
Nancy Naomi Natalie Nina Nora Olga Olivia Ottilie Pamela Patricia Paula Philippa Phyllis Priscilla Rachel
Rebecca Regina Renata Rita Roberta Rosalind Ruth Sabina Sarah Selma Sheila Sibyl Sonia Sophia Stella Susan
Sylvia Teresa Thea Ursula Valerie Vera Veronica Victoria Wanda Winifred Yvonne Zelda Zoe
""".split()

MEN = """
Aaron Abel Abraham Adam Adrian Alan Albert Alexander Alfred Ambrose Amos Andrew Angus Anthony Archibald
Arnold Arthur Arvid Aubrey August Axel Baldwin Barnaby Bartholomew Basil Benedict Benjamin Bernard Bertram
Boris Brian Bruno Cecil Cedric Charles Christian Christopher Clarence Clement Clifford Clive Conrad Cuthbert
Cyril Daniel David Dennis Desmond Dietrich Dominic Donald Douglas Duncan Edgar Edmund Edward Edwin Eric
Ernest Eugene Evan Felix Ferdinand Francis Frederick Gabriel Geoffrey George Gerald Gideon Gilbert Giles
Gordon Gregory Gunther Gustav Hamish Harald Harold Harvey Hector Henry Herbert Herman Horace Howard Hubert
Hugh Humphrey Ian Igor Isaac Ivan Ivor Jacob James Jasper Jerome Joachim John Jonas Joseph Joshua Julian
Julius Karl Keith Kenneth Konrad Laurence Leonard Leopold Leroy Lionel Louis Lucas Ludwig Luther Magnus
Malcolm Marcus Martin Matthew Maurice Maximilian Michael Miles Mortimer Moses Neville Nicholas Nigel Noah
Norbert Oliver Oscar Oswald Otto Owen Patrick Paul Percival Peter Philip Quentin Ralph Raymond Reginald
Richard Robert Roderick Roger Roland Rudolf Rupert Samuel Sebastian Siegfried Simon Solomon Stanley Stephen
Stuart Sven Theodore Thomas Timothy Tobias Ulrich Valentine Victor Vincent Wallace Walter Wilfred Wilhelm
William Xavier
""".split()

SURNAMES = """
Abbott Abernathy Ackerman Adair Addison Adler Ainsworth Albright Alcott Aldridge Allard Allenby Alston Ames
Anders Appleby Arbuthnot Armitage Ashby Ashdown Atherton Atwood Axelrod Aylmer Babcock Bagshaw Bainbridge
Balfour Bancroft Barclay Barlow Barnett Bartlett Barton Bateman Baxter Beauchamp Bellamy Benson Bergman
Berwick Beckwith Bingham Birch Blackwood Blanchard Bloomfield Blythe Bolton Bostock Bradshaw Brandt Brennan
Brewster Briggs Brinkley Bristow Brodie Bromley Bruckner Buchanan Buckley Burgess Burnett Byrne Cabot
Cadwell Calder Caldwell Calloway Cameron Campbell Cardew Carlisle Carmichael Carrington Carruthers Caruso
Castellan Cavendish Chalmers Chandos Chatham Chesney Chilton Churchward Clancy Clayton Cleveland Clifton
Clough Coburn Cochrane Coleridge Collins Colman Compton Connolly Conway Corbett Cornell Cosgrove Cotterill
Coverdale Cowley Crawford Creighton Cromwell Crosby Culpepper Cunningham Curtis Dahl Dalton Danvers Darby
Darnell Davenport Dawson Delacourt Delaney Dempsey Denham Derwent Devlin Dexter Dickson Dillon Donovan
Dorsey Doyle Draycott Drummond Dryden Duffy Dunlop Durand Eastman Eckhart Edgerton Egerton Eldridge Ellery
Ellis Elsworth Emerson Endicott Engel Erikson Everett Fairbanks Fairchild Falconer Farnham Farrell Fenton
Fenwick Ferguson Fielding Finch Fitzroy Flanagan Fleetwood Forsyth Foster Frazier Fremont Frobisher Frost
Fulton Gainsborough Galbraith Gallagher Gardiner Garrick Gerhart Gibbons Gilchrist Gillespie Glover Goddard
Goodwin Gorman Grafton Graham Granger Grayson Greenwood Gresham Griffith Grimshaw Grosvenor Gruber Haddon
Hagen Halliday Halsey Hamilton Hammond Hampton Hanley Hansen Harcourt Hardwick Hargrove Harlan Harmon Harper
Harrington Hartley Hastings Hathaway Haverford Hawkins Hawley Hayward Heath Hendricks Herrick Hewitt Hickman
Higgins Hobart Hodgson Hoffman Holbrook Holcomb Hollis Holloway Holmes Horton Houghton Hudson Huxtable
Ingersoll Ingram Ironside Jameson Jardine Jarvis Jefferies Jensen Johansen Kavanagh Keating Keller Kellogg
Kendall Kendrick Kensington Kessler Kimball Kincaid Kingsley Kirby Kirkland Knox Koenig Krause Lambert
Lancaster Landon Langdon Langley Larkin Larsen Latham Latimer Lawson Leighton Lennox Leroux Leslie Lindberg
Lindgren Lindsay Linton Livingston Lockhart Lockwood Lombard Lorimer Loring Lovell Ludlow Lyndon Macaulay
Macdonald Mackenzie Macleod Maddox Maitland Mallory Manning Mansell Marchand Marlowe Marsden Maxwell Mayhew
Mckinley Mercer Meredith Merrick Merton Middleton Milburn Milford Millard Monroe Montague Montrose Moreau
Morley Morrison Mortensen Mulligan Munro Murdoch Nash Needham Nelson Neumann Newbold Newell Newland Nielsen
Nightingale Norton Norwood Novak Nugent Oakley Ogden Ogilvie Olsen Ormond Osborne Overton Paget Palgrave
Parrish Paxton Peabody Pearson Pelham Pemberton Pendleton Penrose Percy Perkins Petersen Pettigrew Phelps
Pickering Pinkerton Plimpton Plumley Pomeroy Prescott Preston Prideaux Pritchard Proctor Purdy Quigley
Quincy Radcliffe Rafferty Raleigh Ramsey Randall Rankin Ransome Rathbone Redfern Redmond Remington Renfrew
Renshaw Reynolds Ridley Riordan Robson Rochester Rockwell Roebuck Romney Roscoe Rossi Rowland Rushton
Rutland Sanderson Sargent Saville Schmidt Selby Selwyn Severn Seymour Shelton Sherwood Shipley Sinclair
Somerset Southwell Spalding Spencer Stafford Stanhope Stanton Starling Sterling Stockwell Stratton Sullivan
Sumner Sutherland Sutton Swann Sweeney Talbot Templeton Tennant Thorne Thurston Tillman Tolliver Townsend
Tremaine Trevelyan Trowbridge Truman Tuttle Underhill Underwood Upton Vance Vandermeer Vaughan Vickers
Wadsworth Wainwright Wakefield Walpole Walton Warburton Warwick Waverly Webster Wentworth Westcott Weston
Wexler Whitaker Whitby Whitfield Whitlock Wickham Wilcox Wilder Willoughby Winslow Winthrop Woodward Wyatt
Wyndham Yardley Yates York Zimmerman
""".split()

# Twenty beginnings and ten endings make two hundred cities, each the home of many people.
CITIES = [
    start + end
    for start in (
        "Alder Barrow Brack Carl Crow Dun Elm Fal Glen Harrow Kes Lang Mar Nor Oak Pen Raven Thorn Wend Win"
    ).split()
    for end in "bridge bury dale field ford gate haven mere port wick".split()
]

TRADES = """
apothecary architect auctioneer baker barber beekeeper blacksmith bookbinder bookseller brewer bricklayer
butcher cabinetmaker carpenter cartwright cheesemaker chemist chimneysweep clockmaker coachman cobbler
confectioner cooper dairyman dentist draper dyer engraver farmer ferryman fisherman florist forester furrier
gamekeeper gardener glassblower goldsmith grocer gunsmith hatter innkeeper ironmonger jeweller joiner
knifegrinder lighthousekeeper locksmith lumberjack mapmaker mason merchant miller miner notary nurseryman
optician organist painter paperhanger pharmacist photographer physician piemaker plasterer plumber policeman
porter postman potter printer quarryman ropemaker saddler sailmaker schoolmaster sculptor shepherd
shipwright shoemaker signalman silversmith solicitor stonecutter surgeon surveyor tailor tanner taxidermist
thatcher tinsmith tobacconist toymaker undertaker upholsterer vet vintner wagonmaker watchmaker weaver
wheelwright whitesmith woodcarver
""".split()

FIELDS = """
accounting acoustics agriculture algebra anatomy anthropology archaeology architecture astronomy
bacteriology biochemistry biology botany cartography ceramics chemistry classics climatology composition
criminology cybernetics dentistry ecology economics education electronics engineering entomology ethics
ethnology finance forestry genetics geography geology geometry heraldry history horticulture hydrology
immunology journalism jurisprudence law librarianship linguistics literature logic mathematics mechanics
medicine metallurgy metaphysics meteorology microbiology mineralogy musicology neurology nutrition
oceanography optics ornithology paleontology pathology pedagogy pharmacology philology philosophy phonetics
physics physiology politics psychiatry psychology rhetoric seismology sociology statistics surgery surveying
taxonomy theology topology toxicology virology zoology
""".split()

INSTRUMENTS = """
accordion balalaika bandoneon banjo bassoon bouzouki bugle carillon celesta cello clarinet clavichord
concertina cornet cymbals didgeridoo dulcimer euphonium fiddle flugelhorn flute glockenspiel guitar
harmonica harmonium harp harpsichord kazoo lute lyre mandolin marimba oboe ocarina organ piano piccolo
psaltery recorder saxophone sitar spinet tambourine timpani trombone trumpet tuba ukulele vibraphone viola
violin virginal xylophone zither
""".split()

LANGUAGES = """
Albanian Arabic Armenian Basque Bengali Breton Bulgarian Catalan Cornish Croatian Czech Danish Dutch
Esperanto Estonian Finnish Flemish French Frisian Gaelic Galician Georgian German Greek Gujarati Hausa
Hawaiian Hebrew Hindi Hungarian Icelandic Irish Italian Japanese Kazakh Khmer Korean Kurdish Lao Latin
Latvian Lithuanian Macedonian Malay Maltese Mandarin Maori Marathi Mongolian Nepali Norwegian Persian Polish
Portuguese Punjabi Quechua Romanian Russian Sanskrit Serbian Slovak Slovene Somali Spanish Swahili Swedish
Tamil Thai Tibetan Turkish Ukrainian Urdu Uzbek Vietnamese Welsh Yiddish Yoruba Zulu
""".split()

SPORTS = """
archery badminton ballooning baseball basketball biathlon billiards bobsleigh boules bowling boxing canoeing
checkers chess climbing cricket croquet curling cycling darts diving dominoes falconry fencing fishing
football gliding golf gymnastics handball hiking hockey hurdling hurling jogging judo karate kayaking
lacrosse mountaineering netball orienteering parachuting pentathlon polo quoits racquetball riding rowing
rugby running sailing shooting shuffleboard skating skiing skittles sledging snooker snorkelling softball
sprinting squash surfing swimming tennis tobogganing trampolining volleyball walking waterpolo weightlifting
windsurfing wrestling yachting
""".split()

COMPANIES = [
    f"{first} {second}"
    for first in "Northern Southern Eastern Western Royal United Imperial National Central Coastal".split()
    for second in (
        "Railway Bank Shipyard Insurance Brewery Foundry Press Telegraph Laboratory Hospital Archive Airline"
    ).split()
]

PRIZES = [
    f"{first} {second}"
    for first in (
        "Golden Silver Crystal Bronze Ivory Scarlet Emerald Amber Marble Velvet Sapphire Crimson"
    ).split()
    for second in "Compass Lantern Laurel Medal Quill Anchor Feather Globe Star Crown Torch Key".split()
]
