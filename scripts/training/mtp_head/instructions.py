"""Requests such as users of a chat make, put together from templates and topics.

Eight kinds of work, as chat benchmarks have them; no benchmark's questions are among the parts.
"""

import random
import string
from collections.abc import Iterator

# fmt: off
PARTS: dict[str, tuple[str, ...]] = {
    "animal": (
        "otter", "raven", "honeybee", "tortoise", "snow leopard", "octopus", "barn owl",
        "hedgehog", "salmon", "camel", "gecko", "draught horse", "penguin", "fruit bat",
        "sheepdog",
    ),
    "place": (
        "a harbour town", "the Scottish Highlands", "a night market", "Lisbon", "a mountain hut",
        "a desert railway", "Kyoto", "an old observatory", "the Danube delta", "a small island",
        "Buenos Aires", "a botanical garden", "a lighthouse", "Nairobi", "an abandoned factory",
    ),
    "subject": (
        "learning to cook", "keeping a garden", "public libraries", "cycling to work", "sleep",
        "remote work", "chess", "recycling at home", "growing older", "first jobs", "friendship",
        "school uniforms", "street music", "saving money", "moving to a new city", "bread",
        "working night shifts", "family holidays", "volunteering", "mobile phones at school",
    ),
    "science": (
        "photosynthesis", "plate tectonics", "black holes", "vaccines", "the water cycle",
        "superconductivity", "evolution by natural selection", "the nitrogen cycle", "tides",
        "radioactive decay", "the greenhouse effect", "enzymes", "electromagnetic induction",
        "osmosis", "the Doppler effect", "semiconductors", "antibiotic resistance", "entropy",
        "the structure of DNA", "stellar nucleosynthesis", "buoyancy", "neurons", "lasers",
    ),
    "history": (
        "the printing press", "the Silk Road", "the Industrial Revolution", "the Roman aqueducts",
        "the Black Death", "the French Revolution", "the Meiji Restoration", "decolonisation",
        "the Hanseatic League", "the Great Depression", "the Ottoman Empire", "the space race",
        "the abolition of slavery", "the Renaissance in Florence", "the fall of Constantinople",
    ),
    "thought": (
        "utilitarianism", "the social contract", "free will", "stoicism", "the veil of ignorance",
        "cultural relativism", "existentialism", "the trolley problem", "inflation",
        "comparative advantage", "supply and demand", "public goods", "opportunity cost",
        "game theory in everyday life", "the prisoner's dilemma", "price elasticity",
    ),
    "role": (
        "a ship's captain", "a medieval blacksmith", "a strict editor", "a mountain guide",
        "a robot who has just woken up", "a detective in the 1920s", "a kind grandmother",
        "a sports commentator", "a museum guide", "a tired astronaut", "a village doctor",
        "a talkative parrot", "a chess coach", "a travelling merchant", "a weather forecaster",
    ),
    "person": (
        "a ten-year-old", "a new colleague", "a beginner", "an engineer", "a tourist",
        "my parents", "a group of students", "someone in a hurry", "a sceptical customer",
        "a patient",
    ),
    "form": (
        "a short poem", "a haiku", "a limerick", "a short story", "a diary entry", "a letter",
        "a dialogue between two friends", "a blog post", "an opening paragraph", "a speech",
        "a product description", "a newspaper article", "a song text", "a review", "a fable",
    ),
    "mood": (
        "cheerful", "melancholy", "humorous", "formal", "suspenseful", "hopeful", "dry",
        "friendly", "dramatic", "thoughtful",
    ),
    "structure": (
        "a linked list", "a binary search tree", "a hash table", "a queue", "a stack", "a heap",
        "a directed graph", "a matrix", "a trie", "a circular buffer", "a sorted array", "a set",
    ),
    "program": (
        "merges two sorted lists", "counts the words in a file",
        "checks whether a string is valid JSON", "reverses the words of a sentence",
        "finds duplicate files in a folder", "converts Roman numerals to integers",
        "computes the greatest common divisor", "simulates a simple bank account",
        "plays tic-tac-toe", "validates an e-mail address", "draws a triangle of stars",
        "sorts a list of dictionaries by a key", "parses a CSV file",
        "generates all permutations of a list", "rotates a matrix by ninety degrees",
        "finds the longest common prefix of several strings", "removes vowels from a string",
        "computes the moving average of a list", "flattens a nested list", "caches function calls",
        "finds the shortest path in a grid", "groups words that are anagrams", "rolls dice",
        "encodes text with a Caesar cipher", "converts temperatures",
        "checks for balanced brackets",
    ),
    "language": (
        "Python", "Python", "Python", "Python", "JavaScript", "C++", "Java", "SQL", "Bash", "Rust",
    ),
    "item": (
        "apples", "notebooks", "train tickets", "bottles of water", "chairs", "pencils", "bricks",
        "theatre seats", "light bulbs", "kilograms of rice", "postcards", "litres of paint",
    ),
    "name": (
        "Mara", "Tomas", "Aiko", "Kwame", "Ingrid", "Rafael", "Leila", "Piotr", "Nadia", "Hugo",
        "Priya", "Sven", "Chloe", "Omar", "Yuki", "Bruno",
    ),
    "small": (
        "2", "3", "4", "5", "6", "7", "8", "9",
    ),
    "medium": (
        "12", "15", "18", "24", "30", "36", "45", "60", "75", "80", "96",
    ),
    "large": (
        "120", "150", "240", "360", "480", "500", "750", "900", "1200", "1500",
    ),
    "fact": (
       
        "The {animal} festival takes place in {place} every {small} years and costs {large} euros.",
        "{name} sold {large} {item} on Monday and {medium} on Tuesday, mostly to tourists.",
        "On 4 March {name} and {name2} opened a workshop in {place} with {medium} employees.",
        "The review by {name} says: the {item} arrived late, but the service was friendly.",
        "Order {large}: {medium} {item} for {name}, {small} for {name2}, to be sent on Friday.",
        "{name} wrote a book about {history}; {name2} translated it {small} years later.",
    ),
    "wanted": (
        "all names of people", "every number, with what it counts", "the places and the dates",
        "the main event in one sentence", "the nouns", "the amounts as a JSON object",
        "who did what, as a table", "the positive and the negative statements",
    ),
}
# fmt: on

TEMPLATES: dict[str, tuple[str, ...]] = {
    "writing": (
        "Write {form} about {subject}.",
        "Write {form} set in {place}. The tone should be {mood}.",
        "Compose {form} for {person} about {subject}, in at most {large} words.",
        "Write an e-mail to {name} about {subject}. Keep it {mood} and short.",
        "Suggest {small} titles for {form} about {subject}.",
        "Rewrite this sentence in a {mood} style: I think that {subject} matters more than people "
        "say.",
        "Describe {place} in the early morning, in a {mood} tone.",
        "Write the beginning of a story in which {role} meets {role2} in {place}.",
    ),
    "roleplay": (
        "Pretend that you are {role}. Explain {science} to {person}.",
        "You are {role}. Introduce yourself and tell me about {subject}.",
        "Act as {role} and answer: what do you think of {subject}?",
        "Imagine you are {role} in {place}. Describe your day in a {mood} way.",
        "Play the part of {role} who argues with {role2} about {subject}.",
    ),
    "reasoning": (
        "{name} is older than {name2}, and {name3} is younger than {name2}. Who is the oldest?",
        "There are {small} boxes with {small2} {item} each, and one box is empty. How many {item} "
        "are there? Explain your reasoning.",
        "Is it a good idea to decide about {subject} by a vote? Give reasons for and against.",
        "A train leaves at {small} o'clock and travels for {small2} hours. When does it arrive, "
        "and what did you assume?",
        "What is wrong with this argument: every {animal} I have seen was asleep, so all of them "
        "always sleep?",
        "{name} sits left of {name2}. {name3} sits right of {name2}. Who sits in the middle?",
        "Which is the odd one out, and why: a {animal}, a {animal2}, {place}?",
    ),
    "math": (
        "{name} buys {medium} {item} at {small} euros each and returns {small2} of them. How much "
        "does {name} pay in the end?",
        "Compute {large} divided by {small}, and show each step.",
        "Solve for x: {small}x + {medium} = {large}.",
        "A rectangle is {medium} cm long and {small} cm wide. What are its area and perimeter?",
        "What is {medium} percent of {large}?",
        "The sum of {small} consecutive integers is {large}. What can you say about them?",
        "If {small} workers need {medium} hours, how long do {small2} workers need?",
        "Find the derivative of f(x) = {small}x^{small2} + {medium}x.",
        "What is the probability of throwing a {small} with one die twice in a row?",
        "{name} reads {medium} pages a day. How many days does a book of {large} pages take?",
    ),
    "coding": (
        "Write a {language} program that {program}.",
        "Write a function in {language} that {program}. Add comments and an example.",
        "Explain what {structure} is, and show a small example in {language}.",
        "Implement {structure} in {language}.",
        "How would you test a program that {program}? Write the tests in {language}.",
        "Compare {structure} with {structure2}: when would you use which?",
        "What is the time complexity of searching in {structure}? Explain to {person}.",
        "Write a class in Python for {structure} with methods to add, remove and print elements.",
    ),
    "extraction": (
        "Extract {wanted} from this text.\n\n{fact}",
        "Read the text and list {wanted}.\n\n{fact} {fact2}",
        "Summarise in one sentence:\n\n{fact} {fact2}",
        "Translate into a JSON object with suitable keys:\n\n{fact}",
        "{fact} {fact2}\n\nFrom the text above, give {wanted}.",
    ),
    "stem": (
        "Explain {science} to {person}.",
        "What is the connection between {science} and {science2}?",
        "Give {small} examples of {science} in everyday life.",
        "What are common misunderstandings about {science}?",
        "How was {science} discovered, and why does it matter?",
        "Describe an experiment that shows {science}.",
        "What happens to a {animal} in winter, and why?",
    ),
    "humanities": (
        "What were the causes and the consequences of {history}?",
        "Explain {thought} to {person}, with an example.",
        "Compare {thought} with {thought2}.",
        "How did {history} change daily life?",
        "Write a lesson plan about {history} for {person}.",
        "What would a supporter of {thought} say about {subject}?",
        "Give {small} arguments about {thought} and how to answer them.",
    ),
}

MAX_TRIES_PER_INSTRUCTION = 10


def instructions(count: int, rng: random.Random) -> list[str]:
    """At most ``count`` distinct requests, the kinds in turn; fewer where the parts run out."""
    kinds = list(TEMPLATES.values())
    found: dict[str, None] = {}
    for turn in range(count * MAX_TRIES_PER_INSTRUCTION):
        if len(found) == count:
            break
        found[fill(rng.choice(kinds[turn % len(kinds)]), rng)] = None
    return list(found)


def fill(template: str, rng: random.Random) -> str:
    """The template with every field drawn; fields of one part, ``{name}`` and ``{name2}``, differ.

    What is drawn may be a template itself.
    """
    drawn: dict[str, str] = {}
    for field in fields(template):
        choices = [c for c in PARTS[field.rstrip("23")] if c not in drawn.values()]
        drawn[field] = fill(rng.choice(choices), rng)
    return template.format_map(drawn)


def fields(template: str) -> Iterator[str]:
    return (name for _, name, _, _ in string.Formatter().parse(template) if name)
