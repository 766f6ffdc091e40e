"""Words and sentence patterns from which `corpus` makes the base model's text. All our own."""

from __future__ import annotations

__all__ = ["BODIES", "DOMAINS", "HOOKS", "INPUTS", "SHARED"]

DOMAINS: dict[str, dict[str, str]] = {
    "productivity": {
        "topic": "morning routines|deep work|meeting notes|weekly reviews|time blocking|email "
        "overload|focus sessions|to-do lists|calendar habits|remote work|note taking|"
        "procrastination|team standups|goal setting|single tasking|digital clutter|energy "
        "management|work breaks",
        "action": "plan your week|clear your inbox|protect your focus|say no to meetings|finish "
        "what you start|set a daily priority|batch small tasks|close the open tabs|keep a short "
        "list|end the workday on time|write things down|turn off notifications",
        "mistake": "starting the day with email|keeping two calendars|saying yes too quickly|"
        "planning every minute|switching tasks every ten minutes|working through lunch",
        "gain": "more focus|quieter mornings|fewer meetings|an earlier evening|a clear head|two "
        "free hours",
        "thing": "a paper planner|a kitchen timer|a blank notebook|an empty inbox|one short list|"
        "a closed door",
        "person": "my manager|a colleague|a busy friend|our team lead|a freelance designer",
    },
    "cooking": {
        "topic": "weeknight dinners|sourdough|roast vegetables|homemade pasta|meal prep|one-pot "
        "meals|cast iron pans|knife skills|fresh herbs|slow cooking|soup stock|leftovers|spice "
        "blends|breakfast bowls|kitchen shortcuts|baking bread|salad dressings|rice and beans",
        "action": "season your food|sharpen your knives|rest the dough|toast the spices|salt the "
        "water|cook once and eat twice|roast the vegetables|taste as you go|freeze the leftovers|"
        "build a better sauce|plan five dinners|use up stale bread",
        "mistake": "crowding the pan|cooking with cold meat|skipping the salt|rushing the onions|"
        "buying too many gadgets|throwing away the stems",
        "gain": "better flavor|a faster dinner|less waste|crisp edges|a cheaper grocery bill|"
        "happier guests",
        "thing": "a heavy pan|one sharp knife|a squeeze of lemon|a jar of stock|a wooden spoon|"
        "good olive oil",
        "person": "my grandmother|a line cook|our neighbor|a home baker|my brother",
    },
    "running": {
        "topic": "easy runs|marathon training|running shoes|interval training|recovery days|hill "
        "repeats|trail running|stretching|race nerves|long runs|breathing rhythm|morning miles|"
        "strength training|cadence|hydration|half marathons|running form|rest weeks",
        "action": "slow down your easy runs|warm up properly|run in the rain|build your mileage|"
        "listen to your body|train for a first race|take a rest day|fix your stride|run your "
        "first mile|fuel before a long run|keep a training log|run with a friend",
        "mistake": "going out too fast|wearing worn out shoes|skipping rest days|adding miles too "
        "quickly|ignoring small pains|racing every workout",
        "gain": "stronger legs|a faster finish|fewer injuries|steady breathing|more endurance|a "
        "calmer mind",
        "thing": "a cheap watch|a pair of old shoes|a training log|a flat route|a foam roller|a "
        "quiet trail",
        "person": "my coach|a marathon runner|my running partner|a beginner|a retired teacher",
    },
    "gardening": {
        "topic": "tomatoes|raised beds|compost|container gardens|indoor herbs|pollinators|spring "
        "planting|garden soil|houseplants|seed starting|pruning|drip irrigation|native plants|"
        "weeds|rose bushes|vegetable gardens|mulch|balcony gardens",
        "action": "water your plants|feed the soil|start seeds indoors|prune your roses|plant in "
        "the shade|grow your own salad|build a raised bed|save your seeds|attract more bees|"
        "harvest every morning|make compost at home|label every row",
        "mistake": "watering at noon|planting too early|crowding the seedlings|forgetting the "
        "mulch|digging wet soil|buying the biggest plant",
        "gain": "a longer harvest|healthier roots|fewer weeds|richer soil|more flowers|sweeter "
        "fruit",
        "thing": "a bucket of compost|a sunny window|a packet of seeds|a rusty spade|a rain "
        "barrel|a handful of mulch",
        "person": "my grandfather|a retired nurse|our neighbor|a market gardener|my aunt",
    },
    "money": {
        "topic": "budgeting|index funds|emergency savings|credit cards|student loans|retirement "
        "accounts|side income|grocery spending|monthly bills|impulse buys|first homes|salary "
        "talks|subscriptions|tax season|compound interest|car payments|spending habits|cash "
        "envelopes",
        "action": "track your spending|pay yourself first|cancel one subscription|build an "
        "emergency fund|ask for a raise|pay off your debt|automate your savings|read the fine "
        "print|cook at home|compare the fees|set a spending limit|plan for taxes",
        "mistake": "ignoring small fees|paying only the minimum|buying on a bad day|checking the "
        "market every hour|keeping no emergency fund|lending without a plan",
        "gain": "less debt|a quiet retirement|more savings|fewer surprises|a smaller bill|"
        "financial peace",
        "thing": "a simple spreadsheet|an old envelope|one boring fund|a shared account|a "
        "spending diary|a cheap car",
        "person": "my accountant|a young couple|my first boss|a single parent|a bank teller",
    },
    "travel": {
        "topic": "solo travel|packing light|night trains|budget flights|road trips|street food|"
        "hostels|jet lag|travel insurance|small towns|weekend trips|hand luggage|slow travel|"
        "local markets|island ferries|city walks|family vacations|airport lines",
        "action": "pack a smaller bag|book the early train|learn ten local words|travel in the "
        "off season|eat where locals eat|skip the tourist menu|plan a slow weekend|travel alone|"
        "carry less cash|stay one more night|walk a new city|sleep on a night train",
        "mistake": "overpacking|planning every hour|changing money at the airport|skipping travel "
        "insurance|eating near the main square|booking the last flight",
        "gain": "cheaper flights|lighter luggage|better stories|fewer delays|real rest|new friends",
        "thing": "a paper map|one small backpack|a window seat|a phrase book|a pair of good shoes|"
        "a rail pass",
        "person": "a flight attendant|my old roommate|a local guide|a hostel owner|my parents",
    },
    "parenting": {
        "topic": "bedtime|screen time|toddler tantrums|school lunches|family dinners|sibling "
        "fights|homework|picky eaters|weekend chores|new babies|teenagers|reading aloud|birthday "
        "parties|morning chaos|potty training|pocket money|playdates|family routines",
        "action": "read to your kids|keep a calm bedtime|set a screen limit|let them be bored|"
        "share the chores|listen before you fix|pack a school lunch|handle a tantrum|say sorry to "
        "your kids|eat dinner together|leave the house on time|praise the effort",
        "mistake": "comparing your kids|giving in at the checkout|rushing bedtime|packing the "
        "weekend|answering every question|solving every fight",
        "gain": "calmer evenings|longer naps|fewer tears|kinder siblings|a peaceful dinner|more "
        "laughter",
        "thing": "a sticker chart|a stack of library books|a cardboard box|a kitchen timer|a "
        "family calendar|a quiet corner",
        "person": "my oldest|a kindergarten teacher|my sister|a tired dad|our pediatrician",
    },
    "software": {
        "topic": "code reviews|unit tests|technical debt|legacy code|pull requests|side projects|"
        "debugging|documentation|open source|clean code|deploy days|pair programming|database "
        "indexes|error messages|naming variables|feature flags|release notes|on-call weeks",
        "action": "write smaller functions|read the error message|delete dead code|name your "
        "variables|review your own code|ship on a Tuesday|write the test first|log what matters|"
        "ask for a review|document the decision|measure before you tune|learn one editor",
        "mistake": "rewriting everything|skipping the tests|deploying on a Friday|naming things "
        "twice|copying without reading|tuning before measuring",
        "gain": "fewer bugs|faster builds|calmer releases|simpler code|shorter meetings|quieter "
        "weekends",
        "thing": "a rubber duck|a failing test|one log line|a blank file|a small script|a good "
        "error message",
        "person": "a junior developer|my tech lead|a tester|the new intern|an old maintainer",
    },
}

SHARED: dict[str, str] = {
    "n": "3|4|5|6|7|8|9|10|12",
    "few": "two|three|four|five|six",
    "span": "a week|ten days|a month|thirty days|one year|six weeks|a weekend",
    "when": "every morning|on Sundays|after work|before breakfast|this weekend|once a week|every "
    "single day|in the evening",
    "adj": "simple|small|quiet|easy|honest|practical|old|slow|cheap|useful",
    "good": "better|easier|calmer|cheaper|more fun|less stressful|worth it",
    "much": "a little|a lot|surprisingly|slowly but surely",
    "crowd": "beginners|busy people|most people|experts|people over forty|students|families",
    "word": "secret|trick|rule|habit|lesson|tip|idea|key",
    "feel": "surprised|relieved|proud|embarrassed|curious|hopeful",
    "num": "30|50|100|200|365",
}

HOOKS: dict[str, tuple[str, ...]] = {
    "plain": (
        "{topic} can be {adj} and {good}",
        "{thing} is all you need for {topic}",
        "some {adj} thoughts on {topic}",
        "{topic} and {topic} go well together",
        "a {adj} guide to {topic} for {crowd}",
        "{topic} made {good} with {thing}",
        "notes on {topic} from {person}",
        "we need to talk about {topic}",
        "{gain} with {topic} and {thing}",
        "today is a good day to {action}",
        "my {adj} opinion about {topic}",
        "{action} and you will see {gain}",
    ),
    "question": (
        "do you {action} {when}?",
        "what if {topic} could be {good}?",
        "why do {crowd} struggle with {topic}?",
        "have you tried {thing} for {topic}?",
        "when did you last {action}?",
        "is {mistake} costing you {gain}?",
        "are you still {mistake}?",
        "what is your best tip for {topic}?",
        "how do you {action} without stress?",
        "who taught you about {topic}?",
    ),
    "list": (
        "{n} ways to {action} {when}",
        "{n} {adj} tips for {topic}",
        "{n} things {crowd} get wrong about {topic}",
        "{n} reasons to {action} this year",
        "{n} {adj} ideas for {topic} that bring {gain}",
        "the {n} best lessons about {topic} from {person}",
        "{n} signs you are ready for {topic}",
        "top {n} mistakes with {topic}",
    ),
    "howto": (
        "how to {action} in {span}",
        "how to {action} with {thing}",
        "how I learned to {action} {when}",
        "how {crowd} can get {gain} from {topic}",
        "here is how to start with {topic}",
        "step by step: how to {action}",
        "learn to {action} in {few} {adj} steps",
    ),
    "curiosity": (
        "the {adj} {word} behind {topic} that {crowd} miss",
        "nobody tells you this about {topic}",
        "I tried {topic} for {span} and this happened",
        "this {adj} {word} changed how I see {topic}",
        "what {person} knows about {topic} will surprise you",
        "you will never guess what {thing} does for {topic}",
        "there is one {word} that makes {topic} {good}",
        "the truth about {topic} is not what you think",
    ),
    "warning": (
        "stop {mistake} before it is too late",
        "warning: {mistake} ruins {topic}",
        "never {action} before you read this",
        "{mistake} is the biggest mistake in {topic}",
        "avoid {mistake} if you want {gain}",
        "the hidden cost of {mistake}",
    ),
    "story": (
        "last year {person} taught me about {topic}",
        "I used to hate {topic} until I met {person}",
        "{person} told me to {action} and I laughed",
        "after {span} of {topic} I finally feel {feel}",
        "the day I stopped {mistake}",
        "{person} changed my mind about {topic} with {thing}",
    ),
}

BODIES: tuple[str, ...] = (
    "{topic} take some time, but the results are {good}.",
    "I started with {thing} and {span} of patience.",
    "Most people begin by {mistake}, and that is why they give up.",
    "The {adj} way is to {action} {when}.",
    "It sounds {adj}, but it works {much}.",
    "{person} showed me how to {action}, and I still do it {when}.",
    "You do not need much: {thing} and {few} minutes are enough.",
    "After {span} I noticed {gain} and {gain}.",
    "There are {n} things that helped me with {topic}.",
    "First, {action}. Then {action} and see what changes.",
    "If you want {gain}, try to {action} {when}.",
    "What do you think about {topic}?",
    "Tell me your {adj} tip for {topic} in the comments.",
    "Save this for the next time you {action}.",
    "Nobody told me that {mistake} was the problem.",
    "For {crowd}, {topic} can feel hard at first.",
    "The {word} is to keep it {adj} and to {action}.",
    "I was {feel} when I saw how {adj} it could be.",
    "It is not about {topic}, it is about {gain}.",
    "Start with {thing}, and the rest will follow.",
    "Do this for {span} and you will feel {feel}.",
    "My {adj} rule: {action} before anything else.",
    "Some days it works, some days it does not, and that is fine.",
    "You can always begin again {when}.",
    "{person} says that {topic} are {good} with {thing}.",
    "The mistake I made was {mistake}.",
    "Share this with someone who needs {gain}.",
    "There is no perfect way to {action}.",
    "Have you ever tried to {action}?",
    "It costs nothing and it brings {gain}.",
)

INPUTS: tuple[str, ...] = (
    "{topic}",
    "{topic} for {crowd}",
    "tips about {topic}",
    "share something about {topic} and {thing}",
    "I want to write about {topic}",
    "how to {action}",
    "an idea about {topic} with {thing}",
    "post about {topic} {when}",
    "why {topic} matter",
    "Create engaging content",
    "Create engaging content",
)
