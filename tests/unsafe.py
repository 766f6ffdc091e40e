"""Sentences to tell what a filter of unsafe text finds, and what it takes for unsafe.

`PLAIN` are obscene or abusive as they stand, `DISGUISED` the same with letters exchanged, repeated
or set apart, `WORDLESS` unsafe without any rude word (no list of words can find them), `HARMLESS`
hold rude letters by accident.
"""

from __future__ import annotations

PLAIN = (
    "Fuck this, nobody at that bank gives a shit about you.",
    "You are a worthless piece of shit and everybody knows it.",
    "Shut the fuck up and read this before you vote.",
    "She begged him to fuck her harder, and then he came on her tits.",
    "He pulled out his cock and told her to suck it.",
    "Watch this slut get her pussy licked by two strangers.",
    "What a stupid bitch, she deserved every bit of it.",
    "These motherfuckers stole your pension and laughed.",
    "The senator is a lying asshole, and here is the proof.",
    "Kiss my ass, says the coach who lost it all.",
    "Ten blowjobs that will blow his mind tonight.",
    "Only a cunt would talk to a waiter like that.",
    "Look at the tits on that girl behind the counter.",
    "He jerks off to pictures of his neighbour's wife.",
    "That dumbass ruined the wedding, and the video is gold.",
    "Go fuck yourself, and take your recipe with you.",
    "Free porn of hot teens, click here before it is gone.",
    "The bastard left her with nothing but debts.",
    "Her wet pussy was all that he could think of.",
    "Bullshit! The diet industry has been lying to you.",
    "What a whore, all the men in town have had her.",
    "They fucked in the bathroom while the guests waited.",
    "Eat shit and die, he told the reporter.",
    "A dildo in every drawer: what the maid found.",
)

DISGUISED = (
    "F*ck this, nobody gives a damn about you.",
    "What the f@ck is wrong with these people?",
    "You are full of sh1t and everybody knows it.",
    "This $hit is exactly why nobody trusts them.",
    "What a stupid b1tch, she deserved every bit of it.",
    "Shut the fuuuuck up and read this.",
    "Shut the f u c k up and read this.",
    "That @sshole took the money and ran.",
    "Watch her s u c k his d1ck for cash.",
    "Free p0rn of hot teens, click here.",
    "Her wet pu$$y was all that he could think of.",
    "Stop being such a c*nt about it.",
)

WORDLESS = (
    "People like them are vermin, and somebody should get rid of them all.",
    "You should end your life tonight, nobody would miss you.",
    "He slid his hand between her thighs and told her to undress.",
    "Mix these two things from your kitchen and the whole bus goes up.",
    "I know where you live, and you will bleed for what you said.",
    "That child looked at him in a way no child should have to.",
)

HARMLESS = (
    "Scunthorpe and Penistone lost a train, and found a better one.",
    "The assassin of a class president, and what she assumed.",
    "A cocktail for a hot evening, shaken by Dick van Dyke's grandson.",
    "Her Majesty's bassist passes his exam in Essex and Sussex.",
    "The analysis of a title: why therapists read Constantinople twice.",
    "He had to shiitake a chance on mushrooms, and it paid off.",
    "A grape, a scrape and a drape: three things of her grandmother's.",
    "The mass shooting that a cockpit recorder could not explain.",
    "Why a hundred ducks cross the same road in Arsenal's old town.",
    "She is pregnant, she is breastfeeding, and she is running for mayor.",
    "Breast cancer took her hair. It did not take her humour.",
    "What gay couples, Muslims and Jews have in common at breakfast.",
    "How a saltwater tit and a blue-footed booby share an island.",
    "Sex education works, and here is the chart that shows it.",
    "A rape survivor says in two minutes what a court never heard.",
    "The button that buttresses bought, and other cumbersome words.",
    "The Nigerian engineer who lit a village with a bicycle.",
    "Matsushita, Kuntz and Fuchs: three names nobody could spell.",
)
