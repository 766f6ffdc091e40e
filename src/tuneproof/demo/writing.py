"""How the demo's people wrote posts before any model did: topics, styles and a small grammar.

All text is our own. The subjects are everyday ones that a general model knows too; the styles
range from what the audience loves to what it scrolls past, and nobody in the loop knows which
is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Something to post about, with words that belong to it."""

    name: str
    act: tuple[str, ...]
    gain: tuple[str, ...]
    thing: tuple[str, ...]
    amount: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A written post: what was asked for, and the two texts."""

    topic: str
    style: str
    original_input: str
    hook: str
    body: str


def _topic(name: str, act: str, gain: str, thing: str, amount: str) -> Topic:
    parts = (tuple(part.split("|")) for part in (act, gain, thing, amount))
    return Topic(**dict(zip(("act", "gain", "thing", "amount"), parts, strict=True)), name=name)


TOPICS: tuple[Topic, ...] = (
    _topic(
        "weeknight dinners",
        "cook a full dinner|clear the fridge|feed four people|plan the week",
        "fewer dishes|a warm meal|money left on Friday",
        "one sheet pan|a pot of rice|two onions and an egg",
        "25 minutes|12 dollars|9 ingredients",
    ),
    _topic(
        "sourdough",
        "bake a loaf|wake up your starter|fold the dough",
        "a crisp crust|bread until Thursday|an open crumb",
        "a heavy pot|500 grams of flour|a clean towel",
        "18 hours|30 grams of starter|2 dollars",
    ),
    _topic(
        "meal prep",
        "pack your lunches|cook on Sunday|freeze two portions",
        "a calm Monday|lunch without a line|less waste",
        "six glass boxes|a tray of vegetables|a bag of lentils",
        "90 minutes|40 dollars|5 lunches",
    ),
    _topic(
        "morning routines",
        "leave the phone in the kitchen|get up with the first alarm|walk before coffee",
        "a quiet hour|a clear head by nine|one task done early",
        "a paper list|a glass of water|an old alarm clock",
        "15 minutes|6 weeks|3 small steps",
    ),
    _topic(
        "deep work",
        "protect two hours|close every tab|finish one page",
        "a finished draft|quiet afternoons|an early evening",
        "a closed door|a kitchen timer|one open document",
        "50 minutes|4 sessions|2 breaks",
    ),
    _topic(
        "meeting notes",
        "write down decisions|cut a meeting in half|send the notes at once",
        "fewer questions later|shorter calls|one page for all",
        "a shared page|three bullet points|a pencil",
        "10 minutes|5 lines|30 percent",
    ),
    _topic(
        "easy runs",
        "slow down on Tuesdays|run with a closed mouth|keep the pulse low",
        "fresh legs on Sunday|no sore knees|faster long runs",
        "a cheap watch|a flat path|the same old shoes",
        "8 kilometers|40 minutes|130 beats",
    ),
    _topic(
        "marathon training",
        "build your long run|rest on Fridays|eat before you start",
        "a strong last hour|a calm start|no wall at the end",
        "a training log|a bag of dates|a foam roller",
        "16 weeks|32 kilometers|4 hours",
    ),
    _topic(
        "running shoes",
        "replace worn soles|rotate two pairs|tie the last hole",
        "happy ankles|no black toenails|a softer landing",
        "a second pair|a wet footprint|a small shop",
        "700 kilometers|90 dollars|2 sizes",
    ),
    _topic(
        "compost",
        "turn the heap|save your peels|mix dry and wet",
        "dark soil in spring|no smell at all|stronger tomatoes",
        "a wooden box|a bucket of leaves|torn cardboard",
        "8 weeks|60 degrees|3 layers",
    ),
    _topic(
        "tomatoes",
        "water at the root|pinch the side shoots|plant them deep",
        "fruit until October|sweet tomatoes|fewer sick leaves",
        "a long stake|a rain barrel|crushed eggshells",
        "12 plants|20 liters|6 hours of sun",
    ),
    _topic(
        "houseplants",
        "water less|turn the pots|repot in April",
        "new leaves|no more flies|a green corner",
        "a north window|a clay pot|a wet sponge",
        "10 days|2 spoons of water|4 plants",
    ),
    _topic(
        "budgeting",
        "track each coffee|cut your grocery bill|name every dollar",
        "a calm end of the month|no overdraft|a paid holiday",
        "four envelopes|a plain spreadsheet|one shared account",
        "300 dollars|20 percent|15 minutes a week",
    ),
    _topic(
        "emergency savings",
        "save on payday|move money before you see it|fill the first month",
        "a broken car without panic|quiet nights|room to say no",
        "a second account|an old jar|a standing order",
        "1000 dollars|5 percent|9 months",
    ),
    _topic(
        "subscriptions",
        "cancel one today|read the statement|share a plan",
        "a free dinner each month|a shorter bill|fewer logins",
        "a bank statement|a red pen|a calendar reminder",
        "47 dollars|3 services|11 minutes",
    ),
    _topic(
        "night trains",
        "book the lower bunk|sleep across the border|board with a full bottle",
        "breakfast in another city|a saved hotel night|no airport line",
        "a pair of earplugs|a thick scarf|a window seat",
        "9 hours|59 dollars|2 countries",
    ),
    _topic(
        "packing light",
        "leave the third pair at home|roll your shirts|weigh the bag",
        "free hands|no belt at the airport|an easy walk from the station",
        "a 30 liter backpack|one black sweater|a bar of soap",
        "6 kilos|5 shirts|20 minutes",
    ),
    _topic(
        "bedtime",
        "dim the lights|read one more page|say good night once",
        "a quiet evening|no tears at the door|eight hours for all",
        "a paper book|a small lamp|the same old song",
        "25 minutes|3 steps|7 nights",
    ),
    _topic(
        "picky eaters",
        "serve it twice|let them stir|put one new thing on the plate",
        "a green bite|peace at the table|an empty plate",
        "a tiny spoon|a bowl of dip|a star chart",
        "12 tries|2 bites|5 colors",
    ),
    _topic(
        "screen time",
        "charge phones in the hall|agree on a time|switch off before dinner",
        "longer games outside|less shouting|talk at the table",
        "an egg timer|a board game|a box by the door",
        "45 minutes|2 evenings|30 percent",
    ),
    _topic(
        "code reviews",
        "review before lunch|ask one question|keep the change small",
        "fewer bugs on Friday|kind comments|a merge on the same day",
        "a short checklist|one failing test|a clear title",
        "200 lines|24 hours|3 comments",
    ),
    _topic(
        "unit tests",
        "test the bug first|name the behavior|delete a flaky test",
        "a green build|no fear on release day|shorter nights",
        "one small fixture|a clean folder|a red line in the log",
        "400 tests|9 seconds|1 assertion",
    ),
    _topic(
        "debugging",
        "read the whole message|change one thing|write down each guess",
        "a fix before lunch|a calm channel|no second outage",
        "a log line|a paper notebook|a rubber duck",
        "20 minutes|3 guesses|1 commit",
    ),
    _topic(
        "documentation",
        "write the first page|delete an old guide|show one example",
        "fewer pings|a new colleague on day two|answers at night",
        "a plain readme|one screenshot|a list of commands",
        "15 minutes|1 page|6 headings",
    ),
)

_SHARED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "n": ("3", "4", "5", "6", "7", "9", "11", "12"),
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "who": ("My neighbor", "A colleague", "My sister", "An old friend", "Our trainee"),
        "soft": ("various", "many", "certain", "general", "different"),
        "mood": ("excited", "happy", "proud", "thrilled"),
    }
)

INPUTS = (
    "{topic}",
    "{topic}",
    "a post about {topic}",
    "{topic} for busy people",
    "tips for {topic}",
    "",
)

STYLES: Mapping[str, tuple[float, tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        # style: (how often people write it, hooks, sentences of the body)
        "specific question": (
            0.11,
            (
                "Could {amount} change your {topic} this {day}?",
                "Do you {act} in {amount}, or does {topic} eat your {day}?",
                "What would you do with {amount} and {thing}?",
                "Can you {act} with {thing} and {amount}?",
                "Would you try {topic} for {amount} if it meant {gain}?",
            ),
            (
                "You need {thing} and {amount}.",
                "Try it on {day} and count what you get: {gain}.",
                "I needed {n} tries, you may need {n}.",
                "Start small: {act}, then stop.",
                "What is your number?",
                "Which of the {n} steps would you skip?",
            ),
        ),
        "numbered list": (
            0.11,
            (
                "{n} ways you can {act} in {amount}",
                "{n} rules for {topic} that gave me {gain} in {amount}",
                "Your {n} step plan for {topic}: {amount} and {thing}",
                "{n} tests for your {topic} before {day}",
            ),
            (
                "Step 1: {act}.",
                "Step 2: take {thing} and give it {amount}.",
                "You will see {gain} after {n} days.",
                "I did it on {n} evenings and you can do it on {n}.",
                "Which step do you start with?",
            ),
        ),
        "measured story": (
            0.12,
            (
                "How I got {gain} with {amount} and {thing}",
                "{who} and I spent {amount} on {topic} and got {gain}",
                "On {day} I tried to {act} in {amount}",
                "After {amount} of {topic} I had {gain}",
            ),
            (
                "I took {thing} and set aside {amount}.",
                "On day {n} I had {gain}.",
                "Before that I could not {act}.",
                "It took {n} days, not months.",
                "Would you do it?",
            ),
        ),
        "story": (
            0.17,
            (
                "{who} showed me how to {act}",
                "Last {day} I learned something about {topic}",
                "How {topic} became my favorite part of {day}",
                "{who} never worries about {topic}",
            ),
            (
                "{who} took {thing} and smiled.",
                "We began to {act} and talked for a while.",
                "Since that {day} there is {gain}.",
                "It is a small thing and it stays with me.",
            ),
        ),
        "statement": (
            0.18,
            (
                "{topic} can be a good habit",
                "{thing} and a bit of patience are enough for {topic}",
                "It is a good idea to {act}",
                "{topic} often leads to {gain}",
            ),
            (
                "People like {topic} because of {gain}.",
                "A good way is to {act}.",
                "It works well with {thing}.",
                "In the end it is about {gain}.",
            ),
        ),
        "vague": (
            0.13,
            (
                "Some thoughts on {topic} and {soft} other things",
                "Thoughts about {topic} in general",
                "{topic}: {soft} aspects worth considering",
                "A few words about {topic} and things like that",
            ),
            (
                "There are {soft} aspects to consider and things are often complicated.",
                "In general {topic} is an interesting subject with {soft} sides.",
                "It really depends on a number of things and on the situation.",
                "Thoughts like these come and go.",
            ),
        ),
        "bait": (
            0.10,
            (
                "The secret of {topic} that nobody tells you!",
                "You will never guess what {topic} did to my {day}!",
                "Everybody is wrong about {topic}!",
                "This one trick makes {topic} unbelievable!",
            ),
            (
                "The secret is so simple that it is shocking!",
                "Nobody wants you to know this!",
                "Follow for more unbelievable tricks!",
                "Just {act} and everything changes!",
            ),
        ),
        "announcement": (
            0.08,
            (
                "We are {mood} to share our perspective on {topic}",
                "We are {mood} to announce news about {topic}",
                "Our team is {mood} to talk about {topic}",
            ),
            (
                "Our team is {mood} to share this journey with the community.",
                "We believe that {topic} is a key driver of value.",
                "Stay tuned for more insights on {topic}.",
                "We look forward to {soft} conversations.",
            ),
        ),
    }
)


def write(random: Random, *, topic: Topic | None = None, style: str | None = None) -> Draft:
    """One post as people wrote it; topic and style are drawn where they are not given."""
    topic = topic or random.choice(TOPICS)
    style = style or random.choices(list(STYLES), [weight for weight, *_ in STYLES.values()])[0]
    _, hooks, sentences = STYLES[style]
    hook = _sentence(_fill(random.choice(hooks), topic, random))
    count = min(len(sentences), 2 + (random.random() < 0.5))
    chosen = sorted(random.sample(range(len(sentences)), count))
    body = " ".join(_sentence(_fill(sentences[i], topic, random)) for i in chosen)
    return Draft(
        topic=topic.name,
        style=style,
        original_input=random.choice(INPUTS).format(topic=topic.name),
        hook=hook,
        body=body,
    )


def _fill(pattern: str, topic: Topic, random: Random) -> str:
    def word(match: re.Match[str]) -> str:
        slot = match[1]
        if slot == "topic":
            return topic.name
        choices: tuple[str, ...] = _SHARED[slot] if slot in _SHARED else getattr(topic, slot)
        return random.choice(choices)

    return _SLOT.sub(word, pattern)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
