"""Questions of general knowledge with short answers: the pool from which study.py keeps what the base model answers.

`pool()` gives (group, entity, prompt, answer): a text to be completed, and what a right reply begins with. A prompt is
a sentence of its group with its answer, so that it is plain what is asked for, and the beginning of another. The tables
were written for this folder.
"""

capitals = """
Afghanistan Kabul|Albania Tirana|Algeria Algiers|Angola Luanda|Argentina Buenos Aires|Armenia Yerevan|Australia Canberra
Austria Vienna|Azerbaijan Baku|Bangladesh Dhaka|Belarus Minsk|Belgium Brussels|Bolivia La Paz|Botswana Gaborone
Brazil Brasilia|Bulgaria Sofia|Cambodia Phnom Penh|Cameroon Yaounde|Canada Ottawa|Chad N'Djamena|Chile Santiago
China Beijing|Colombia Bogota|Croatia Zagreb|Cuba Havana|Cyprus Nicosia|Denmark Copenhagen|Ecuador Quito|Egypt Cairo
Estonia Tallinn|Ethiopia Addis Ababa|Fiji Suva|Finland Helsinki|France Paris|Georgia Tbilisi|Germany Berlin|Ghana Accra
Greece Athens|Guatemala Guatemala City|Haiti Port-au-Prince|Honduras Tegucigalpa|Hungary Budapest|Iceland Reykjavik
India New Delhi|Indonesia Jakarta|Iran Tehran|Iraq Baghdad|Ireland Dublin|Israel Jerusalem|Italy Rome|Jamaica Kingston
Japan Tokyo|Jordan Amman|Kazakhstan Astana|Kenya Nairobi|Kuwait Kuwait City|Laos Vientiane|Latvia Riga|Lebanon Beirut
Liberia Monrovia|Libya Tripoli|Lithuania Vilnius|Madagascar Antananarivo|Malaysia Kuala Lumpur|Mali Bamako
Malta Valletta|Mexico Mexico City|Moldova Chisinau|Mongolia Ulaanbaatar|Morocco Rabat|Mozambique Maputo|Namibia Windhoek
Nepal Kathmandu|Netherlands Amsterdam|New Zealand Wellington|Nicaragua Managua|Niger Niamey|Nigeria Abuja
North Korea Pyongyang|Norway Oslo|Oman Muscat|Pakistan Islamabad|Panama Panama City|Paraguay Asuncion|Peru Lima
Philippines Manila|Poland Warsaw|Portugal Lisbon|Qatar Doha|Romania Bucharest|Russia Moscow|Rwanda Kigali
Saudi Arabia Riyadh|Senegal Dakar|Serbia Belgrade|Slovakia Bratislava|Slovenia Ljubljana|Somalia Mogadishu
South Korea Seoul|Spain Madrid|Sri Lanka Colombo|Sudan Khartoum|Sweden Stockholm|Switzerland Bern|Syria Damascus
Taiwan Taipei|Tanzania Dodoma|Thailand Bangkok|Tunisia Tunis|Turkey Ankara|Uganda Kampala|Ukraine Kiev
United Kingdom London|United States Washington|Uruguay Montevideo|Uzbekistan Tashkent|Venezuela Caracas|Vietnam Hanoi
Yemen Sanaa|Zambia Lusaka|Zimbabwe Harare
"""
two_words = {"New", "North", "Saudi", "South", "Sri", "United"}  # first words of countries of two words
articles = {"Netherlands", "Philippines", "United Kingdom", "United States"}

continents = {
    "Africa": "Algeria Angola Botswana Cameroon Chad Egypt Ethiopia Ghana Kenya Liberia Libya Madagascar Mali Morocco "
    "Mozambique Namibia Niger Nigeria Rwanda Senegal Somalia Sudan Tanzania Tunisia Uganda Zambia Zimbabwe",
    "Asia": "Afghanistan Bangladesh Cambodia China India Indonesia Iran Iraq Japan Jordan Laos Malaysia Mongolia Nepal "
    "Pakistan Singapore Syria Taiwan Thailand Vietnam Yemen",
    "Europe": "Albania Austria Belgium Bulgaria Croatia Denmark Estonia Finland France Germany Greece Hungary Iceland "
    "Ireland Italy Latvia Lithuania Norway Poland Portugal Romania Serbia Slovakia Slovenia Spain Sweden Switzerland "
    "Ukraine",
    "South America": "Argentina Bolivia Brazil Chile Colombia Ecuador Paraguay Peru Uruguay Venezuela",
}
languages = """
Argentina Spanish|Australia English|Austria German|Bangladesh Bengali|Brazil Portuguese|Bulgaria Bulgarian|Chile Spanish
China Mandarin|Colombia Spanish|Cuba Spanish|Denmark Danish|Egypt Arabic|Finland Finnish|France French|Germany German
Greece Greek|Hungary Hungarian|Iceland Icelandic|Iran Persian|Iraq Arabic|Israel Hebrew|Italy Italian|Japan Japanese
Jordan Arabic|Mexico Spanish|Mongolia Mongolian|Morocco Arabic|Nepal Nepali|Norway Norwegian|Peru Spanish|Poland Polish
Portugal Portuguese|Romania Romanian|Russia Russian|Serbia Serbian|Spain Spanish|Sweden Swedish|Thailand Thai
Turkey Turkish|Ukraine Ukrainian|Vietnam Vietnamese|Jamaica English|Ireland English|Venezuela Spanish|Angola Portuguese
"""
people = """
Argentina Argentine|Australia Australian|Austria Austrian|Belgium Belgian|Brazil Brazilian|Canada Canadian|China Chinese
Denmark Danish|Egypt Egyptian|Ethiopia Ethiopian|Finland Finnish|France French|Germany German|Greece Greek|India Indian
Iran Iranian|Ireland Irish|Italy Italian|Japan Japanese|Kenya Kenyan|Mexico Mexican|Morocco Moroccan|Nigeria Nigerian
Norway Norwegian|Peru Peruvian|Poland Polish|Portugal Portuguese|Russia Russian|Spain Spanish|Sweden Swedish
Switzerland Swiss|Turkey Turkish|Vietnam Vietnamese|Cuba Cuban|Chile Chilean|Hungary Hungarian
"""
currencies = """
Japan yen|India rupee|China yuan|Russia ruble|Mexico peso|Brazil real|Switzerland franc|Poland zloty|Israel shekel
Thailand baht|Vietnam dong|Turkey lira|Canada dollar|Australia dollar|Germany euro|France euro|Italy euro|Spain euro
Pakistan rupee|Argentina peso|Nigeria naira|Iran rial|Iraq dinar|Kuwait dinar|Kenya shilling
"""
states = """
Alabama Montgomery|Alaska Juneau|Arizona Phoenix|Arkansas Little Rock|California Sacramento|Colorado Denver
Connecticut Hartford|Delaware Dover|Florida Tallahassee|Georgia Atlanta|Hawaii Honolulu|Idaho Boise|Illinois Springfield
Indiana Indianapolis|Iowa Des Moines|Kansas Topeka|Kentucky Frankfort|Louisiana Baton Rouge|Maine Augusta
Maryland Annapolis|Massachusetts Boston|Michigan Lansing|Minnesota St. Paul|Mississippi Jackson|Missouri Jefferson City
Montana Helena|Nebraska Lincoln|Nevada Carson City|Ohio Columbus|Oklahoma Oklahoma City|Oregon Salem
Pennsylvania Harrisburg|Tennessee Nashville|Texas Austin|Utah Salt Lake City|Vermont Montpelier|Virginia Richmond
Washington Olympia|Wisconsin Madison|Wyoming Cheyenne
"""
elements = """
hydrogen H 1|helium He 2|lithium Li 3|beryllium Be 4|boron B 5|carbon C 6|nitrogen N 7|oxygen O 8|fluorine F 9
neon Ne 10|sodium Na 11|magnesium Mg 12|aluminum Al 13|silicon Si 14|phosphorus P 15|sulfur S 16|chlorine Cl 17
argon Ar 18|potassium K 19|calcium Ca 20|titanium Ti 22|chromium Cr 24|manganese Mn 25|iron Fe 26|cobalt Co 27
nickel Ni 28|copper Cu 29|zinc Zn 30|arsenic As 33|bromine Br 35|krypton Kr 36|silver Ag 47|tin Sn 50|iodine I 53
xenon Xe 54|barium Ba 56|tungsten W 74|platinum Pt 78|gold Au 79|mercury Hg 80|lead Pb 82|radon Rn 86|radium Ra 88
uranium U 92|plutonium Pu 94
"""
opposites = """
hot cold|big small|tall short|up down|left right|good bad|black white|day night|early late|fast slow|happy sad|hard soft
high low|in out|light dark|long short|love hate|new old|open closed|rich poor|right wrong|strong weak|thick thin
true false|war peace|wet dry|young old|north south|east west|buy sell|win lose|push pull|begin end|clean dirty
deep shallow|empty full|enter exit|expensive cheap|first last|heavy light|inside outside|laugh cry|male female|near far
positive negative|quiet loud|rough smooth|safe dangerous|sweet sour|top bottom|wide narrow|brave cowardly|ancient modern
increase decrease|accept reject|arrive depart|success failure|maximum minimum|alive dead|awake asleep|before after
guilty innocent|horizontal vertical|internal external|major minor|odd even|optimist pessimist|public private
temporary permanent|victory defeat|friend enemy|question answer|never always
"""
plurals = """
child children|man men|woman women|foot feet|tooth teeth|goose geese|mouse mice|ox oxen|leaf leaves|knife knives
wife wives|life lives|wolf wolves|city cities|baby babies|box boxes|dish dishes|church churches|potato potatoes
tomato tomatoes|hero heroes|cactus cacti|person people|sheep sheep|deer deer|fish fish|dog dogs|cat cats|house houses
bus buses|story stories|country countries|half halves|shelf shelves|thief thieves|analysis analyses|crisis crises
phenomenon phenomena|criterion criteria|bacterium bacteria|datum data|fungus fungi
"""
past = """
go went|run ran|eat ate|see saw|take took|give gave|come came|write wrote|drive drove|speak spoke|break broke|swim swam
sing sang|begin began|drink drank|fly flew|grow grew|know knew|throw threw|buy bought|bring brought|think thought
catch caught|teach taught|sleep slept|feel felt|keep kept|leave left|lose lost|make made|meet met|pay paid|say said
sell sold|send sent|sit sat|stand stood|tell told|win won|find found|hold held|build built|fall fell|forget forgot
hide hid|ride rode|ring rang|rise rose|shake shook|steal stole|wear wore|walk walked|play played|jump jumped|do did
have had|is was|are were|become became|choose chose
"""
young = """
dog puppy|cat kitten|cow calf|horse foal|sheep lamb|goat kid|pig piglet|hen chick|duck duckling|goose gosling
swan cygnet|bear cub|lion cub|deer fawn|kangaroo joey|frog tadpole|elephant calf|eagle eaglet|owl owlet|whale calf
wolf pup|fox cub
"""
works = """
Romeo and Juliet=William Shakespeare|Hamlet=William Shakespeare|Macbeth=William Shakespeare
Don Quixote=Miguel de Cervantes|Pride and Prejudice=Jane Austen|Emma=Jane Austen|Oliver Twist=Charles Dickens
Great Expectations=Charles Dickens|A Tale of Two Cities=Charles Dickens|War and Peace=Leo Tolstoy
Anna Karenina=Leo Tolstoy|1984=George Orwell|Animal Farm=George Orwell|The Great Gatsby=F. Scott Fitzgerald
Moby-Dick=Herman Melville|Frankenstein=Mary Shelley|Dracula=Bram Stoker|The Odyssey=Homer|The Iliad=Homer
The Divine Comedy=Dante|Faust=Johann Wolfgang von Goethe|Crime and Punishment=Fyodor Dostoevsky
The Hobbit=J.R.R. Tolkien|The Lord of the Rings=J.R.R. Tolkien|To Kill a Mockingbird=Harper Lee
The Adventures of Tom Sawyer=Mark Twain|Adventures of Huckleberry Finn=Mark Twain|Jane Eyre=Charlotte
Wuthering Heights=Emily|Les Miserables=Victor Hugo|The Old Man and the Sea=Ernest Hemingway
The Metamorphosis=Franz Kafka|Ulysses=James Joyce|The Republic=Plato|On the Origin of Species=Charles Darwin
Alice's Adventures in Wonderland=Lewis Carroll|The Time Machine=H.G. Wells|Brave New World=Aldous Huxley
The Catcher in the Rye=J.D. Salinger|The Grapes of Wrath=John Steinbeck|Of Mice and Men=John Steinbeck
"""
spanish = """
dog perro|cat gato|house casa|water agua|bread pan|milk leche|book libro|red rojo|blue azul|green verde|black negro
white blanco|friend amigo|sun sol|moon luna|night noche|man hombre|woman mujer|boy niño|girl niña|school escuela
table mesa|hand mano|head cabeza|heart corazón|love amor|good bueno|bad malo|big grande|small pequeño|one uno|two dos
three tres|four cuatro|five cinco|ten diez|hello hola|thank_you gracias|goodbye adiós
"""
french = """
dog chien|cat chat|house maison|water eau|bread pain|milk lait|book livre|red rouge|blue bleu|green vert|black noir
white blanc|friend ami|sun soleil|moon lune|night nuit|man homme|woman femme|boy garçon|girl fille|school école
hand main|head tête|heart cœur|love amour|good bon|big grand|small petit|one un|two deux|three trois|four quatre
five cinq|ten dix|hello bonjour|thank_you merci|cheese fromage|apple pomme|king roi|queen reine
"""
more = """
The planet closest to the Sun is|Mercury
The largest planet in the solar system is|Jupiter
The planet known as the Red Planet is|Mars
The planet with the most famous rings is|Saturn
The planet that we live on is called|Earth
The star at the center of our solar system is the|Sun
Our galaxy is called the|Milky Way
The force that pulls objects toward the Earth is called|gravity
The process by which plants make food from sunlight is called|photosynthesis
The green pigment in plants is called|chlorophyll
The powerhouse of the cell is the|mitochondria
The organ that pumps blood through the body is the|heart
The largest organ of the human body is the|skin
The organs that we breathe with are the|lungs
The bones of the body make up the|skeleton
The study of living things is called|biology
The study of the stars and planets is called|astronomy
The study of the mind and behavior is called|psychology
The study of the past is called|history
The study of rocks is called|geology
The study of plants is called|botany
The study of animals is called|zoology
Water freezes at zero degrees|Celsius
The chemical formula of water is|H
The gas that humans need to breathe is|oxygen
The gas that plants take in from the air is|carbon dioxide
The hardest natural substance is|diamond
Frozen water is called|ice
A scientist who studies fossils is called a|paleontologist
A person who flies an airplane is called a|pilot
A person who writes books is called an|author
A person who treats sick animals is called a|veterinarian
A person who treats teeth is called a|dentist
A person who bakes bread is called a|baker
A person who teaches in a school is called a|teacher
A place where books are kept is called a|library
A place where sick people are treated is called a|hospital
A shape with three sides is called a|triangle
A shape with four equal sides is called a|square
A shape with five sides is called a|pentagon
A shape with six sides is called a|hexagon
A shape with eight sides is called an|octagon
The distance around a circle is called the|circumference
A line through the center of a circle is called the|diameter
The theory of relativity was developed by|Albert Einstein
The theory of evolution was proposed by|Charles Darwin
The laws of motion were formulated by|Isaac Newton
The telephone was invented by|Alexander Graham Bell
The light bulb was invented by|Thomas Edison
The printing press was invented by|Johannes Gutenberg
The first airplane was built by the|Wright
Penicillin was discovered by|Alexander Fleming
Radium was discovered by|Marie Curie
The Mona Lisa was painted by|Leonardo da Vinci
The Starry Night was painted by|Vincent van Gogh
Guernica was painted by|Pablo Picasso
The ceiling of the Sistine Chapel was painted by|Michelangelo
The Fifth Symphony in C minor was composed by Ludwig van|Beethoven
The first president of the United States was|George Washington
The president during the American Civil War was|Abraham Lincoln
The first man on the Moon was|Neil Armstrong
The leader of Nazi Germany was|Adolf Hitler
The Indian leader known for nonviolence was|Mahatma Gandhi
The civil rights leader who said "I have a dream" was|Martin Luther King
The South African leader who was in prison for 27 years was|Nelson Mandela
The Eiffel Tower is in the city of|Paris
The Colosseum is in the city of|Rome
The Statue of Liberty is in the city of|New York
Big Ben is in the city of|London
The Great Wall is in the country of|China
The Taj Mahal is in the country of|India
The pyramids of Giza are in the country of|Egypt
Machu Picchu is in the country of|Peru
The highest mountain in the world is|Mount Everest
The largest ocean in the world is the|Pacific
The ocean between Europe and America is the|Atlantic
The longest river in Africa is the|Nile
The river that flows through London is the|Thames
The largest desert in Africa is the|Sahara
The largest rainforest in the world is the|Amazon
The largest country in the world by area is|Russia
The Second World War ended in the year|1945
The First World War began in the year|1914
The United States declared independence in the year|1776
The French Revolution began in the year|1789
Columbus reached America in the year|1492
The first man landed on the Moon in the year|1969
The Berlin Wall fell in the year|1989
The largest animal in the world is the|blue whale
The tallest animal in the world is the|giraffe
The fastest land animal is the|cheetah
The animal known as the king of the jungle is the|lion
The insect that makes honey is the|bee
A spider has eight|legs
The insect with large colorful wings is called a|butterfly
Sixty seconds make one|minute
Sixty minutes make one|hour
Seven days make one|week
Twelve months make one|year
Ten years make one|decade
A hundred years make one|century
The holy book of Islam is the|Quran
The holy book of Christianity is the|Bible
The sport played at Wimbledon is|tennis
The money of the European Union is the|euro
The season after winter is|spring
The season after spring is|summer
The color made by mixing blue and yellow is|green
The color made by mixing red and yellow is|orange
The color made by mixing red and blue is|purple
The color of grass is|green
The color of blood is|red
The color of snow is|white
The color of coal is|black
"""
months = "January February March April May June July August September October November December".split()
days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
numbers = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
ordinals = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
roman = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 9: "IX", 10: "X", 50: "L", 100: "C", 500: "D", 1000: "M"}


def rows(table):
    for line in table.strip().split("\n"):
        yield from line.split("|")


def pairs(table):
    for row in rows(table):
        left, right = row.split("=") if "=" in row else row.split(" ", 1)
        if left in two_words and "=" not in row and " " in right:
            more_of_it, right = right.split(" ", 1)
            left = f"{left} {more_of_it}"
        yield left.replace("_", " "), right


def named(country):
    return f"the {country}" if country in articles else country


def sentences():
    """(group, entity, sentence without its last word or words, these)"""
    for country, city in pairs(capitals):
        of = named(country)
        if country == city:
            continue
        yield "capital", country, f"The capital of {of} is", city
        if country not in city:
            yield "capital_of", country, f"{city} is the capital of", of
    for continent, countries in continents.items():
        for country in countries.split():
            yield "continent", country, f"{country} is a country on the continent of", continent
    for country, language in pairs(languages):
        yield "language", country, f"The official language of {country} is", language
    for country, adjective in pairs(people):
        yield "people", country, f"Someone who comes from {country} is", adjective
    for country, money in pairs(currencies):
        yield "currency", country, f"The currency of {country} is the", money
    for state, city in pairs(states):
        yield "state", state, f"The capital of the U.S. state of {state} is", city
    for row in rows(elements):
        name, symbol, number = row.split()
        yield "symbol", name, f"The chemical symbol for {name} is", symbol
        yield "element", name, f"The chemical element with the symbol {symbol} is", name
        yield "number", name, f"The atomic number of {name} is", number
    for word, answer in pairs(opposites):
        yield "opposite", word, f'The opposite of "{word}" is "', answer
    for word, answer in pairs(plurals):
        yield "plural", word, f'The plural of "{word}" is "', answer
    for word, answer in pairs(past):
        yield "past", word, f'The past tense of "{word}" is "', answer
    for word, answer in pairs(young):
        yield "young", word, f"A young {word} is called a", answer
    for work, author in pairs(works):
        yield "author", work, f'"{work}" was written by', author
    for language, table in (("Spanish", spanish), ("French", french)):
        for word, answer in pairs(table):
            yield language.lower(), word, f'The {language} word for "{word}" is "', answer
    for line in more.strip().split("\n"):
        sentence, answer = line.split("|")
        yield "more", sentence, sentence, answer
    for list_of, what in ((months, "month"), (days, "day")):
        for before, after in zip(list_of, list_of[1:] + list_of[:1]):
            yield what, before, f"The {what} after {before} is", after
    for before, after in zip(numbers, numbers[1:]):
        yield "counting", before, f"The number after {before} is", after
    for before, after in zip(ordinals, ordinals[1:]):
        yield "ordinal", before, f"After the {before} comes the", after
    for at in range(25):
        before, after = chr(65 + at), chr(66 + at)
        yield "letter", before, f"The letter after {before} is", after
    for value, numeral in roman.items():
        yield "roman", numeral, f"The Roman numeral for {value} is", numeral
    for a in range(1, 11):
        for b in range(1, 11):
            if (a * 7 + b * 3) % 2 == 0:
                yield "sum", f"{a} + {b}", f"{a} + {b} =", str(a + b)
            elif a > 1 and b > 1:
                yield "product", f"{a} x {b}", f"{a} x {b} =", str(a * b)


def pool():
    """(group, entity, prompt, answer); the first sentence of each group is its example."""
    examples = {}
    for group, entity, sentence, answer in sentences():
        whole = sentence + answer + '".' if sentence.endswith('"') else f"{sentence} {answer}."
        if group in ("sum", "product"):
            whole = whole[:-1] + ","
        if group not in examples:
            examples[group] = whole
            continue
        yield group, entity, f"{examples[group]} {sentence}", answer
