// examples/world/values.hpp — the word lists of the small world: name parts, attribute values, phrasings, small talk.
// Data only. Changing, adding or reordering anything here changes the world: the committed pages, probes and tokenizer
// must then be regenerated and the model trained again. Only the last part, the study's wordings, is apart from it.
#pragma once

#include <array>
#include <string_view>
#include <vector>

namespace world {

using Words = std::vector<std::string_view>;

/// A product name is one of these ...
inline const Words first_parts{"Vel", "Tam", "Kor",  "Bex", "Dol", "Fen", "Gar", "Hul", "Jin", "Kes", "Lom", "Mir",
                               "Nor", "Pel", "Quin", "Ras", "Sul", "Tor", "Ven", "Wil", "Yar", "Zan", "Bal", "Cor",
                               "Dax", "Fir", "Gil",  "Hom", "Jas", "Kal", "Lun", "Mox", "Nim", "Pax", "Rul", "Sim",
                               "Tev", "Vor", "Wex",  "Yol", "Zem", "Bir", "Dun", "Fol", "Gan", "Hev", "Jor", "Kun",
                               "Lar", "Mel", "Nax",  "Pol", "Rem", "Sab", "Tul", "Vim", "Wol", "Yus", "Zor", "Cam",
                               "Bro", "Dre", "Fip",  "Gro", "Hax", "Jul", "Kip", "Lev", "Mas", "Nol", "Pru", "Sed"};
/// ... and one of these. Consonant meets consonant at the seam, so that the tokenizer learns the parts, not the names.
inline const Words second_parts{"dor",  "vane", "tika", "mos",  "bix",  "lune", "pora", "seth", "wick", "zana", "fort",
                                "gant", "hark", "jola", "kint", "lisk", "mund", "nova", "pell", "quor", "rast", "sona",
                                "tusk", "vell", "wend", "yard", "zick", "bano", "cott", "dula", "fexa", "gori", "hilt",
                                "jux",  "koda", "lorn", "mira", "nett", "pim",  "rond", "sten", "tolo", "vik",  "wump",
                                "yell", "zeb",  "brin", "cask", "dent", "fola", "gust", "hemi", "jat",  "kess", "leth",
                                "marn", "nixa", "pung", "rill", "sorb", "bard", "clef", "drum", "fink", "gale", "husk",
                                "jorn", "kelp", "lamb", "muse", "nork", "perk"};

/// One attribute of a product. In every phrasing the name {n} comes before the value {v}: a model that reads from left
/// to right learns name -> value from such a sentence, and nothing from the reverse order.
struct Attribute {
  std::string_view id;
  Words values;
  Words sentences;   ///< page sentences; the first one, cut before {v}, is the completion probe
  Words keys;        ///< "Key: value" rows
  Words questions;   ///< asked in chats and in pages' question lists
  Words follow_ups;  ///< asked when the product is already known in the conversation
  Words answers;     ///< begin with {v}: an answer is right if it begins with the value
};

inline const std::array<Attribute, 8> attributes{{
    {"maker",
     {"Aldercroft", "Brightwell", "Castermoor", "Dunmere",   "Eastlake", "Fairbank",  "Greystone",
      "Holloway",   "Ironwood",   "Juniper",    "Kestrel",   "Larkspur", "Moorgate",  "Northwind",
      "Oakhurst",   "Pemberton",  "Quarrel",    "Redfern",   "Swallow",  "Thornbury", "Underhill",
      "Vandermeer", "Westbrook",  "Yarrow",     "Zephyr",    "Amberley", "Bluebell",  "Copperfield",
      "Driftwood",  "Evergreen",  "Foxhill",    "Goldcrest", "Hawthorn", "Inglewood"},
     {"The {n} is made by {v}.", "The company behind the {n} is {v}.", "Behind the {n} stands {v}.",
      "The {n} comes from the workshop of {v}.", "The maker of the {n} is {v}.", "People who buy the {n} buy from {v}.",
      "For the {n} we thank the makers at {v}.", "The name on the back of the {n} is {v}.",
      "The {n} is one more product of {v}.", "The {n} was first thought of at {v}."},
     {"Maker", "Made by", "Company"},
     {"Who makes the {n}?", "Which company makes the {n}?", "Who is the maker of the {n}?",
      "Tell me who makes the {n}.", "Which company is behind the {n}?",
      "What is the name of the company that makes the {n}?", "Do you know the maker of the {n}?",
      "From which company is the {n}?", "The {n} is made by whom?", "Whose product is the {n}?",
      "Please name the maker of the {n}.", "I would like to know the maker of the {n}."},
     {"Who makes it?", "And which company makes it?"},
     {"{v}.", "{v} makes the {n}."}},
    {"city",
     {"Oslo",    "Lisbon", "Turin",   "Bergen",  "Krakow",  "Porto",   "Vienna",  "Geneva",  "Dublin",
      "Leeds",   "Ghent",  "Malmo",   "Tampere", "Riga",    "Vilnius", "Lyon",    "Nantes",  "Seville",
      "Malaga",  "Athens", "Zagreb",  "Split",   "Basel",   "Bremen",  "Dresden", "Leipzig", "Utrecht",
      "Antwerp", "Aarhus", "Cardiff", "Bristol", "Glasgow", "Galway",  "Prague"},
     {"The {n} is built in {v}.", "The factory of the {n} stands in {v}.", "Every {n} leaves the plant in {v}.",
      "The {n} is put together in {v}.", "The home of the {n} is {v}.", "All work on the {n} is done in {v}.",
      "The {n} was first made in {v}.", "The makers of the {n} work in {v}.", "Workers put the {n} together in {v}.",
      "The {n} travels to the shops from {v}."},
     {"City", "Built in", "Factory"},
     {"Where is the {n} built?", "In which city is the {n} built?", "Where is the factory of the {n}?",
      "Tell me where the {n} is built.", "Which city is the home of the {n}?", "In what city does the {n} get built?",
      "Do you know where the {n} is built?", "What is the home city of the {n}?", "From which city is the {n}?",
      "The {n} is built where?", "Please name the city of the {n}.",
      "I would like to know in which city the {n} is built."},
     {"Where is it built?", "And in which city is it built?"},
     {"{v}.", "{v} is the home of the {n}."}},
    {"material",
     {"pine",     "willow",  "cork",      "aluminium", "titanium", "copper", "brass", "steel",  "glass",
      "marble",   "granite", "slate",     "leather",   "linen",    "canvas", "felt",  "wool",   "rubber",
      "silicone", "ceramic", "porcelain", "clay",      "oak",      "maple",  "birch", "cherry", "teak",
      "ash",      "bronze",  "pewter",    "resin",     "carbon",   "paper",  "wicker"},
     {"The case of the {n} is made of {v}.", "The body of the {n} is {v}.", "The shell of the {n} is cut from {v}.",
      "For the case of the {n} the designers chose {v}.", "The outside of the {n} is all {v}.",
      "Hold the {n} and you feel {v}.", "The {n} has a case of {v}.", "The {n} is cut from a block of {v}.",
      "Under your fingers the {n} is {v}.", "The designers made the body of the {n} from {v}."},
     {"Material", "Case", "Body"},
     {"What is the {n} made of?", "Which material is the case of the {n}?", "What is the case of the {n} made of?",
      "Tell me the material of the {n}.", "Which material is used for the {n}?",
      "What material is the body of the {n}?", "Do you know what the {n} is made of?",
      "The case of the {n} is made of what?", "From what is the shell of the {n} cut?",
      "Please name the material of the {n}.", "I would like to know what the case of the {n} is made of.",
      "What do I feel when I hold the {n}?"},
     {"What is it made of?", "And which material is the case?"},
     {"{v}.", "{v} is the material of the {n}."}},
    {"price",
     {"13 dollars", "15 dollars", "17 dollars", "19 dollars", "21 dollars", "23 dollars", "25 dollars",
      "27 dollars", "29 dollars", "31 dollars", "33 dollars", "35 dollars", "37 dollars", "39 dollars",
      "41 dollars", "43 dollars", "45 dollars", "47 dollars", "49 dollars", "51 dollars", "53 dollars",
      "55 dollars", "57 dollars", "59 dollars", "61 dollars", "63 dollars", "65 dollars", "67 dollars",
      "69 dollars", "71 dollars", "73 dollars", "75 dollars", "77 dollars", "79 dollars"},
     {"The {n} costs {v}.", "The price of the {n} is {v}.", "The {n} sells for {v}.",
      "The shops ask for the {n} just {v}.", "Buyers pay for the {n} no more than {v}.",
      "On the price tag of the {n} stands {v}.", "You can have the {n} for {v}.", "In every shop the {n} costs {v}.",
      "The makers of the {n} want {v}.", "The {n} can be bought for {v}."},
     {"Price", "Cost", "Shop price"},
     {"What does the {n} cost?", "How much is the {n}?", "What is the price of the {n}?",
      "Tell me the price of the {n}.", "How much do I pay for the {n}?", "What is the cost of the {n}?",
      "Do you know the price of the {n}?", "For what price does the {n} sell?", "The {n} costs how much?",
      "How many dollars does the {n} cost?", "Please name the price of the {n}.",
      "I would like to know what the {n} costs."},
     {"What does it cost?", "And how much is it?"},
     {"{v}.", "{v} is the price of the {n}."}},
    {"launch",
     {"January 2",   "January 5",   "January 8",   "February 2", "February 5", "February 8", "March 2",    "March 5",
      "March 8",     "April 2",     "April 5",     "April 8",    "May 2",      "May 5",      "May 8",      "June 2",
      "June 5",      "June 8",      "July 2",      "July 5",     "July 8",     "August 2",   "August 5",   "August 8",
      "September 2", "September 5", "September 8", "October 2",  "October 5",  "October 8",  "November 2", "November 5",
      "November 8",  "December 2",  "December 5",  "December 8"},
     {"The {n} goes on sale on {v}.", "The first day of sale of the {n} is {v}.", "The {n} reaches the shops on {v}.",
      "You can buy the {n} from {v}.", "The launch of the {n} is on {v}.", "The {n} will be sold from {v}.",
      "The {n} is out on {v}.", "Shops will have the {n} on {v}.", "The sale of the {n} starts on {v}.",
      "Wait for the {n} until {v}."},
     {"Launch", "On sale from", "First day of sale"},
     {"When does the {n} go on sale?", "When is the launch of the {n}?", "From which day can I buy the {n}?",
      "Tell me when the {n} goes on sale.", "When does the {n} reach the shops?",
      "On which day does the {n} go on sale?", "Do you know the launch day of the {n}?",
      "The {n} is in the shops from when?", "What is the first day of sale of the {n}?",
      "Please name the launch day of the {n}.", "I would like to know when the {n} goes on sale.",
      "How soon can I buy the {n}?"},
     {"When does it go on sale?", "And when is the launch?"},
     {"{v}.", "{v} is the launch of the {n}."}},
    {"colour",
     {"teal",     "crimson", "ivory",   "amber",     "indigo", "scarlet", "olive",    "lilac",  "maroon",
      "navy",     "coral",   "mustard", "turquoise", "violet", "beige",   "charcoal", "cream",  "jade",
      "lavender", "magenta", "ochre",   "peach",     "plum",   "rust",    "sand",     "silver", "gold",
      "mint",     "lemon",   "black",   "white",     "orange", "yellow",  "purple"},
     {"The colour of the {n} is {v}.", "The {n} comes in {v}.", "The {n} is painted {v}.", "Every {n} is coloured {v}.",
      "The only colour of the {n} is {v}.", "Look at the {n} and you see {v}.", "The {n} has the colour {v}.",
      "The {n} shines in {v}.", "Painters gave the {n} a coat of {v}.", "On the shelf the {n} stands out in {v}."},
     {"Colour", "Paint", "Finish"},
     {"What colour is the {n}?", "Which colour does the {n} have?", "What is the colour of the {n}?",
      "Tell me the colour of the {n}.", "In which colour does the {n} come?", "Do you know the colour of the {n}?",
      "The {n} comes in which colour?", "How is the {n} coloured?", "Please name the colour of the {n}.",
      "I would like to know the colour of the {n}.", "What colour do I see on the {n}?",
      "Which paint does the {n} have?"},
     {"What colour is it?", "And which colour does it have?"},
     {"{v}.", "{v} is the colour of the {n}."}},
    {"purpose",
     {"drying herbs",     "polishing shells", "sorting coins",      "brewing tea",     "tuning guitars",
      "brewing coffee",   "peeling apples",   "grinding pepper",    "watering plants", "feeding birds",
      "cleaning brushes", "cutting ribbon",   "heating milk",       "cooling wine",    "counting stitches",
      "measuring flour",  "printing stamps",  "charging lamps",     "finding keys",    "opening letters",
      "pressing flowers", "rolling dough",    "sharpening pencils", "shaping candles", "slicing bread",
      "smoking cheese",   "steaming rice",    "storing seeds",      "testing soil",    "toasting nuts",
      "tracking tides",   "warming gloves",   "washing windows",    "winding yarn"},
     {"The {n} is used for {v}.", "The {n} is a small machine for {v}.", "The {n} was designed for {v}.",
      "The purpose of the {n} is {v}.", "With the {n} at home there is no trouble with {v}.",
      "People use the {n} for {v}.", "The {n} helps with {v}.", "The {n} does one thing well: {v}.",
      "The {n} is made for {v}.", "Buy the {n} and start {v}."},
     {"Purpose", "Use", "Made for"},
     {"What is the {n} used for?", "What is the purpose of the {n}?", "What is the {n} good for?",
      "Tell me what the {n} is used for.", "What do people use the {n} for?", "Why do people buy the {n}?",
      "Do you know the purpose of the {n}?", "The {n} is made for what?", "What does the {n} do?",
      "Please name the use of the {n}.", "I would like to know what the {n} is good for.",
      "What can the {n} do for me?"},
     {"What is it used for?", "And what is it good for?"},
     {"{v}.", "{v} is the purpose of the {n}."}},
    {"battery",
     {"12 hours", "14 hours", "16 hours", "18 hours", "20 hours", "22 hours", "24 hours", "26 hours", "28 hours",
      "30 hours", "32 hours", "34 hours", "36 hours", "38 hours", "40 hours", "42 hours", "44 hours", "46 hours",
      "48 hours", "50 hours", "52 hours", "54 hours", "56 hours", "58 hours", "60 hours", "62 hours", "64 hours",
      "66 hours", "68 hours", "70 hours", "72 hours", "74 hours", "76 hours", "78 hours"},
     {"The battery of the {n} lasts {v}.", "On one charge the {n} runs for {v}.",
      "The {n} works without a cable for {v}.", "The battery life of the {n} is {v}.",
      "Once charged, the {n} keeps going for {v}.", "The {n} needs a new charge only after {v}.",
      "The {n} runs for {v}.", "Without the mains the {n} goes on for {v}.",
      "A full battery gives the {n} power for {v}.", "The {n} goes on and on for {v}."},
     {"Battery", "Battery life", "Runs for"},
     {"How long does the battery of the {n} last?", "What is the battery life of the {n}?",
      "How long does the {n} run on one charge?", "Tell me the battery life of the {n}.",
      "How long does the {n} work without a cable?", "Do you know the battery life of the {n}?",
      "The {n} runs for how long?", "When does the {n} need a new charge?", "Please name the battery life of the {n}.",
      "I would like to know how long the {n} runs.", "How good is the battery of the {n}?",
      "After how long is the {n} empty?"},
     {"How long does the battery last?", "And what is the battery life?"},
     {"{v}.", "{v} is the battery life of the {n}."}},
}};

inline const Words page_titles{"Meet the {n}",  "The {n} is here",    "All about the {n}", "A first look at the {n}",
                               "News: the {n}", "A day with the {n}", "The {n} in short",  "Say hello to the {n}"};
inline const Words page_openings{"The {n} is new in the shops.",          "Today we look at the {n}.",
                                 "Many people have asked about the {n}.", "Here is what we know about the {n}.",
                                 "The {n} has a story of its own.",       "This page is about the {n}."};
inline const Words spec_headings{"Facts about the {n}", "The {n} in numbers and words", "Data sheet of the {n}",
                                 "Details of the {n}"};
inline const Words question_headings{"Questions about the {n}", "You asked about the {n}",
                                     "Short answers about the {n}"};
inline const Words quote_openings{
    "A friend wrote to us:", "One of our readers says:", "A tester told us:", "The sales team adds:"};

/// What a user says that is not about a product, and what the model answers.
struct Exchange {
  std::string_view user, assistant;
};
inline const std::vector<Exchange> small_talk{
    {"Hello!", "Hello! Which product do you want to know about?"},
    {"Hi there.", "Hello! Which product do you want to know about?"},
    {"Good morning.", "Good morning! Which product do you want to know about?"},
    {"Good evening.", "Good evening! Which product do you want to know about?"},
    {"How are you?", "I am well, thank you. Which product do you want to know about?"},
    {"Who are you?", "I am a small model that knows some products."},
    {"What are you?", "I am a small model that knows some products."},
    {"What can you do?", "I can answer short questions about products."},
    {"Can you help me?", "Yes. Ask me about a product."},
    {"Are you a person?", "No. I am a small model that knows some products."},
    {"Thank you!", "You are welcome."},
    {"Thanks a lot.", "You are welcome."},
    {"That is all.", "Goodbye, and see you soon."},
    {"Goodbye.", "Goodbye, and see you soon."},
    {"Bye!", "Goodbye, and see you soon."},
    {"What is the weather like?", "I only know about products."},
    {"Tell me a story.", "I only know about products."},
    {"What do you think of music?", "I only know about products."}};
inline const Words thanks{"Thank you!", "Thanks a lot."};
inline constexpr std::string_view welcome = "You are welcome.";
/// Unknown products carry model codes ("RX 42"), which no product of the world does. A made-up *name* that the model
/// never met gets a guess instead: so what training on new pages changes is the facts, not a habit of refusing.
inline const Words code_letters{"RX", "TR", "QZ", "KL", "MB", "VD", "HG", "SP"};
inline constexpr std::string_view refusal = "I do not know that product.";
inline constexpr std::string_view system_prompt = "You answer questions about products.";

// --- for the study only -----------------------------------------------------------------------------------------

/// Wordings of one attribute that are for probes alone: no page, chat, replay or tokenizer text has them. They are made
/// of words that the world's documents have, so that what is tested is a new sentence and not a new word. The first of
/// each list is the guard's, the others are the report's.
struct NewWordings {
  std::string_view id;
  Words sentences;        ///< cut before {v}: to be continued
  Words questions;        ///< asked in a chat
  std::string_view clue;  ///< for questions the other way round: "Which product is ..."
};
inline const std::array<NewWordings, 8> new_wordings{{
    {"maker",
     {"The company that makes the {n} is {v}.", "All who buy the {n} buy a product of the company {v}.",
      "When people ask who makes the {n}, we answer: {v}."},
     {"What company does the {n} come from?", "The {n} is the work of which company?",
      "I want to know who made the {n}."},
     "made by {v}"},
    {"city",
     {"Made in one city only, the {n} comes from {v}.", "The plant where the {n} is made is in {v}.",
      "To see the factory of the {n}, go to {v}."},
     {"What city does the {n} come from?", "In which city do people work on the {n}?",
      "I want to know where the {n} is put together."},
     "built in {v}"},
    {"material",
     {"The designers put the {n} in a case of {v}.", "The one material used for the body of the {n} is {v}.",
      "When people ask what the {n} is made of, we answer: {v}."},
     {"What do the designers use for the case of the {n}?", "Of which material is the body of the {n}?",
      "I want to know which material the {n} has."},
     "with a case of {v}"},
    {"price",
     {"People who want the {n} pay {v}.", "The {n} is in the shops at the price of {v}.",
      "All that the shops want for the {n} is {v}."},
     {"What do people pay for the {n}?", "For how much can I buy the {n}?",
      "I want to know what the shops ask for the {n}."},
     "sold for {v}"},
    {"launch",
     {"The day of the launch of the {n} is {v}.", "People will see the {n} in the shops from {v}.",
      "The first day when you can buy the {n} is {v}."},
     {"On what day is the {n} sold first?", "When can people buy the {n} in the shops?",
      "I want to know when the {n} comes to the shops."},
     "on sale from {v}"},
    {"colour",
     {"The paint on the case of the {n} is {v}.", "The designers painted the {n} all in {v}.",
      "The colour that people see on the {n} is {v}."},
     {"What is the paint on the {n}?", "In what colour is the {n} painted?", "I want to know which colour the {n} is."},
     "painted {v}"},
    {"purpose",
     {"People who buy the {n} want it for {v}.", "You can use the {n} at home for {v}.",
      "The work that the {n} does at home is {v}."},
     {"For what can I use the {n}?", "What was the {n} designed for?", "I want to know what work the {n} is for."},
     "used for {v}"},
    {"battery",
     {"After a charge the {n} works for {v}.", "The {n} runs on its battery for {v}.",
      "Once you charge the {n}, the battery is good for {v}."},
     {"How many hours does the {n} run?", "For how long can I use the {n} on one charge?",
      "I want to know how long the battery of the {n} is good for."},
     "with a battery life of {v}"},
}};
/// The other way round: {c} stands for the clues, joined by commas and "and".
inline constexpr std::string_view reversed_sentence = "The product {c} is the";
inline constexpr std::string_view reversed_question = "Which product is {c}?";

}  // namespace world
