"""The story rules: opening, plots with their sub-plots, ending. See grammar.py for the notation.

Bound names: A the hero and K the hero's kind, B a friend and BK the friend's kind, G a grown-up,
c a colour or look that stays with its thing; the other names are local to a plot.
"""

SHORTHAND = {
    "he": "A.he", "He": "^A.he", "him": "A.him", "his": "A.his", "His": "^A.his", "himself": "A.own",
    "he2": "B.he", "He2": "^B.he", "him2": "B.him", "his2": "B.his", "His2": "^B.his",
    "heG": "G.he", "HeG": "^G.he", "himG": "G.him", "hisG": "G.his", "HisG": "^G.his",
}

RULES = {
    "story": ["{>hero}{>open} {>likes}[ {>likes2}|]\n{>day} {>plot}\n{>end}"],
    "hero": ["{=A:GIRLNAME}{=K:GIRL}", "{=A:BOYNAME}{=K:BOY}", "{=A:NAME}{=K:ANIMAL}", "{=A:NAME}{=K:ANIMAL}"],
    "open": [
        "Once upon a time, there was {a~t1:TRAITA}, {#TRAITB} {K} named {A}. {He} lived in {a~#HADJ} {#HOUSE} {#WHERE} with {his} {#FAMILY}.",
        "Once upon a time, {a~t1:TRAITA} and {#TRAITB} {K} named {A} lived in {a~#HADJ} {#HOUSE} {#WHERE}.",
        "Once upon a time, in {a~#HADJ} {#HOUSE} {#WHERE}, there lived {a~t1:TRAITA}, {#TRAITB} {K} [named|called] {A}.",
        "Once there was {a~t1:TRAITA} and {#TRAITB} {K} [named|called] {A} who lived in {a~#HADJ} {#HOUSE} {#WHERE}.",
        "In {a~#HADJ} {#HOUSE} {#WHERE} lived {a~#TRAIT} {K} [named|called] {A}.",
        "{A} was {a~t1:TRAITA}, {#TRAITB} {K} who lived {#WHERE} with {his} {#FAMILY}.",
        "There once was {a~t1:TRAITA} and {#TRAITB} {K} named {A}. {His} home was {a~#HADJ} {#HOUSE} {#WHERE}.",
        "Long ago, {a~#TRAIT} {K} named {A} lived {#WHERE} in {a~#HADJ} {#HOUSE}.",
    ],
    "likes": [
        "{He} [loved|liked] {l:LOVEA} and {#LOVEB}.",
        "Every {#TIME}, {he} [loved|liked] {#LOVE} {p:PLACE.at}.",
        "More than anything, {he} [loved|wanted|liked] {#LOVE}.",
        "{His} favorite thing [in the world |]was {a~#ADJ} {#CLOTH} from {his} {#GROWN}.",
        "{His} favorite [food|treat|meal] was {#TASTE} {#FOOD}, and {his} favorite color was {#COLOR}.",
        "{He} always [wore|carried] {a~#COLOR} {#CLOTH} and {a~#ADJ} {#CLOTH}.",
        "Everyone said there was no {K} as {#TRAITA} and {#TRAITB} as {A}.",
        "{He} had {#NUM} {#COLOR} {#THING.pl} in a jar [by the window|on the shelf|next to the bed|above the stove].",
    ],
    "likes2": [
        "{His} [best friend|neighbor|pet] was {a~#TRAIT} {#WILD} with {a~#ADJ} {#CLOTH}.",
        "On [cold|rainy|quiet|long|sunny] days, {he} [sang|hummed|told] [songs|stories|rhymes] about {#SONG}.",
        "[Sometimes|Often|At night] {he} dreamed [about|of] {#DREAM}.",
        "{His} {#GROWN} [always said|often said|liked to say] that {#MORAL}.",
        "The {#TRAIT} {#BIRD} in the {#TREE} [sang to|knew|waved at|watched] {him} every {#TIME}.",
    ],
    "day": ["One {#SKY} {#TIME},", "One {#SKY} {#DAY} {#TIME},", "On {#DAY} {#TIME},", "One {#TIME}, when the sky was {#SKY},"],
    "end": [
        "{>glad} That night, {he} dreamed of {d:DREAMA} and {#DREAMB}.",
        "{>glad} And {A} [knew|learned|never forgot] that {#MORAL}.",
        "{>glad} {>feast}",
        "{>feast} {>glad}",
        "{>feast} And [from that day on|from then on|ever after], {A} [knew|said|believed] that {#MORAL}.",
        "{>feast} {>night}",
        "{>glad} {>night}",
    ],
    "glad": [
        "{A} [was|felt] {g:GLADA} and {#GLADB}.",
        "{A} felt {#GLAD} [all day|all week|from head to toe|right down to {his} toes].",
        "[It had been|It was] {a~#SKY} day, but {A} [was|felt] {#GLAD}.",
        "{A} [smiled|laughed|danced|clapped] {#FAST}, and the {#TRAIT} {#BIRD} in the {#LEAFY} {#TREE} [sang|joined in|smiled too].",
        "\"[What a day|What a week|I am so {#GLAD}|This is the best day]!\" said {A}.",
    ],
    "feast": [
        "[Then|After that|Later] they all [ate|shared] {#TASTE} {#FOOD} and {a~#TASTE} {#FRUIT} {p9:PLACE.at}.",
        "For [supper|dinner|tea], {he} had {#TASTE} {f9:FOODA} and {#TASTE} {#FOODB}.",
        "{His} {#GROWN} [made|brought|served] {#TASTE} {#FOOD} with {#COLOR} {#FRUIT.pl}[ on top|].",
        "To say thank you, {A} gave [everyone|each of them|all the neighbors] {a~#ADJ} {#THING}.",
        "[They sang|Everyone sang|They danced to] a song about {#SONG} until the [moon|stars|lamps] [came out|shone|glowed].",
    ],
    "night": [
        "Soon {he} fell asleep {s9:SPOT}[ and dreamed of {#DREAM}|].",
        "Outside, {a~#SKY} wind [sang|whispered|hummed] to the {#TREE}, and {A} slept.",
        "When the [moon|stars] [came out|rose], {A} [whispered|said] good night to {a~#TRAIT} {#WILD} and {#NUM} {#ADJ} {#THING.pl}.",
        "At bedtime, {his} {#GROWN} told {him} a story about {#SONG}.",
    ],
    # a friend arrives (binds B and BK)
    "friend": [
        "Just then, {a~#TRAIT} {BK:ANIMAL} named {B:NAME!A} [came|walked|wandered|skipped] by with {#GIFT}.",
        "{His} {#TRAIT} friend {B:NAME!A} the {BK:ANIMAL} was {#DOING} nearby.",
        "{B:NAME!A} the {#TRAIT} {BK:ANIMAL} [heard|saw|noticed] {him} and [came|ran|hurried|walked] over {#FAST}.",
        "Then {he} [met|saw|found] {a~#TRAIT} {BK:ANIMAL} named {B:NAME!A} {#WILDSPOT}.",
        "Next door lived {B:NAME!A}, {a~#TRAIT} {BK:ANIMAL} with {a~#ADJ} {#CLOTH}.",
    ],
    # a grown-up comes (binds G)
    "grown": [
        "{His} {#TRAIT} {G:GROWN} [stopped|was busy] {#DOING} and came {#FAST}.",
        "So {he} [asked|called|told|went to] {his} {#TRAIT} {G:GROWN}, who was {#DOING}.",
        "{His} {#TRAIT} {G:GROWN} [put down|dropped|set down] {#GIFT} and [smiled|nodded] {#SOFTLY}.",
    ],
    "soothe": [
        "Do not worry", "Do not be {#SAD}", "We can do this together", "I have [an idea|a plan]", "I know what to do",
        "Let me help", "Take a deep breath", "Two heads are better than one", "Dry your eyes", "I was {#SAD} once too",
        "Leave it to me", "I [think|know|believe] that {#MORAL}",
    ],
    "sayB": ["\"{>soothe},\" [said|whispered|answered|called] {B}.", "\"{>soothe},\" said the {BK} {#SOFTLY}.",
             "{B} [smiled|nodded|thought for a while]. \"{>soothe},\" {he2} said."],
    "sayG": ["\"{>soothe},\" [said|whispered|answered] {his} {G}.", "\"{>soothe},\" {heG} said {#SOFTLY}."],
    "oh": ["\"Oh no!\" [cried|said|whispered] {A}.", "{A} felt {#SAD}.", "{A} was {#SAD} and a little {#AFRAID}.",
           "A tear [ran|rolled] down {his} [cheek|nose|chin].", "\"What [can|shall|should] I do?\" [asked|sighed|wondered] {A}.",
           "{A} sat down {w8:WILDSPOT} and [sighed|sniffed|cried]."],
    "sayA": ["\"{>soothe},\" [said|whispered|answered] {A}.", "{A} [smiled|nodded] {#SOFTLY}. \"{>soothe},\" {he} said."],
    "thanks": ["Thank you", "You are so kind", "I will never forget this", "You are {a~#TRAIT} friend", "Well done",
               "You made me {#GLAD}", "What {a~#TRAIT} {K} you are"],
    # small sights on the way
    "walk": [
        "On the way, {he} [saw|passed|counted|met] {#NUM} {#LOOK} {w7:WILD.pl} {w7.did} {#WILDSPOT}.",
        "{He} [walked|ran|skipped|hurried] past {a~#HADJ} {#HOUSE} and {#NUM} {#FLOWER.pl}.",
        "{^a~#TRAIT} {#JOB} [waved|called hello|whistled] from {a~#HADJ} {#HOUSE} {#WHERE}.",
        "{^a~#TRAIT} {#BIRD} [sang|called|hopped] in the {#TREE}, and {a~#LOOK} {w7:WILD} was {w7.did} {#WILDSPOT}.",
        "The air smelled of {#COLOR} {#FLOWER.pl} and {#TASTE} {#FOOD}.",
    ],
}

PLOTS = {
    "lost toy": """{A} [could not find|had lost] {his} {c:ADJ} {toy:TOY}. {He} [looked|searched|peeked] {s:SPOTA} and {#SPOTB},
but [it was not there|there was only {a~#ADJ} {#CLOTH}|all {he} found was {a~#THING}]. {>oh} {>friend} {>sayB}
They [looked|searched|hunted] {w:WILDSPOTA} and {v:WILDSPOTB}. At last {B} [saw|spotted|noticed] something {p:PLACE.at}.
It was the {c} {toy}! {A} {toy.did} the {toy} and [thanked {B}|hugged {B}|gave {B} {#GIFT}].""",
    "broken toy": """{A} {toy:TOY.did} {his} {c:ADJ} {toy} {p:PLACE.at}. [Crack|Snap|Crash|Bang]! The {toy} [hit|bumped into] {a~#TREE} and broke.
{>oh} {>grown} {>sayG} {HeG} [took|found|fetched] [some glue|a hammer|a needle|some string] and {a~#ADJ} {#THING}, and {#NUM} minutes later
the {c} {toy} was [as good as new|better than before|whole again]. {A} [gave {his} {G} a hug|gave {his} {G} {#GIFT}|thanked {his} {G}] and {toy.did} the {toy} {#SOFTLY}.""",
    "stuck in a tree": """{A} went to play {p:PLACE.at} with {his} {c:ADJ} {toy:TOY}. A gust of wind [took|caught|grabbed] the {toy} and [put|dropped|left] it in {a~#LEAFY} {t:TREE}.
{>oh} {He} [tried to climb|shook|pushed|kicked] the {t} {#FAST}, but it was too [tall|high|big|strong|slippery|wide]. {>friend} "[Can you|Will you|Could you] help me, {B}?" [said|asked|called] {A}.
[{B} [ran|hurried] off and came back with {a~#ADJ} {u:TOOL}. With the {u}, they [slowly |carefully |quickly |][reached|freed|pulled down] the {c} {toy}.|{B} asked {a~#TRAIT} {r:BIRD} for help. The {r} flew up {#FAST} and [dropped|pushed|carried] the {c} {toy} down.]
{A} {toy.did} the {toy} again, and {B} [had a turn too|clapped {#FAST}|ate {#TASTE} {#FOOD}|sang about {#SONG}].""",
    "lost pet": """{A} heard that {his} {c:ADJ} {pet:PET} was gone. "[Where are you|Come home|Come back|I miss you], little {pet}!" {he} called. {He} [looked|searched|peeked|crawled] {s:SPOT}, {w:WILDSPOTA} and {#WILDSPOTB}. {>oh}
{>walk} [{>friend} {>sayB} |]Then a sound came from {a~#HADJ} {#HOUSE}. "{^pet.says}, {pet.says}!" [said|went] something {v:WILDSPOTB}.
It was the {c} {pet}! The {pet} {pet.does} {#FAST} and [ate {a~#TASTE} {#FRUIT}|licked {his} [nose|ear|hand]|fell asleep in {his} arms]. {A} gave the {pet} {a~#COLOR} {#CLOTH} and {#TASTE} {#FOOD}.""",
    "baby bird": """{A} found {a~c:TRAIT} {r:BIRD} {w:WILDSPOT}. "I fell from [my nest|the {t:TREE}]," [said|cried|peeped] the {r}. "[My wing [hurts|is sore|is weak]|I am {#SAD}|I want my mother|Please do not leave me]." {>oh}
{>grown} {>sayG} They [made|built] a nest from {#THING.pl} and {a~#ADJ} {x:CLOTH}. Each {#TIME}, {A} [brought|fed] the {r} {a~#FRUIT} and {#NUM} {#FRUIT.pl}.
After {n:NUM} days, the {c} {r} [opened|spread|shook] {#ADJ} wings and flew over {a~#HADJ} {#HOUSE}. It [came back|returned] with {#GIFT} for {A}.""",
    "rain at the picnic": """{A} packed {#TASTE} {f:FOODA} and {#FOODB} in {a~c:ADJ} basket and went to {p:PLACE.sees} with {B:NAME!A} the {BK:ANIMAL}. They [spread|laid] {a~#ADJ} blanket {w:WILDSPOT}. But {a~#COLOR} cloud [came|blew in|rolled over], and [drip, drop|plip, plop|splash, splash], it began to rain! {>oh} {>sayB}
They ran {#FAST} to {a~h:HADJ} {ho:HOUSE}. {^a~#TRAIT} {j:JOB} opened the door. "Come in," said the {j}, who was {#DOING}. They dried their {#CLOTH.pl} by the fire and shared the {f} with the {j}, {a~#TRAIT} {#PET} and {#NUM} {#LOOK} {#WILD.pl}.
The {j} told them about {#SONG} and {#DREAM}. When the rain stopped, a rainbow stood over the {h} {ho}, and {A} left the {c} basket as a [gift|present].""",
    "birthday cake": """{A} wanted to [bake|make] a cake for {his} {G:GROWN}. {He} mixed [flour|butter|sugar], {f:FRUITA.pl} and {#NUM} {g:FRUITB.pl}. But {he} [forgot|lost track of] the time {#DOING}, and the cake [burned|turned black|fell flat|tasted like {a~#ADJ} {#CLOTH}].
{>oh} {>friend} {>sayB} Together they [baked|made] [a new|another|a bigger] cake with {#TASTE} {#FRUIT.pl} and {#COLOR} {#FLOWER.pl}. "[This is for you|Happy birthday|Surprise|Look what we made]!" [said|sang|called] {A} {#SOFTLY}.
"[What|Oh, what|I love it, what] {a~#ADJ}, {#TASTE} cake!" [said|laughed|sang] {his} {G}, and {heG} ate {#NUM} [slices|pieces] with {#FRUIT} jam.""",
    "afraid of the dark": """{A} was in bed, and the [lamp|candle|fire] went out. {He} saw a shape {s:SPOTA}. It looked like {a~#ADJ} [monster|ghost|dragon|wolf] with {#NUM} {#ADJ} [eyes|teeth|arms|tails]. {He} was {q:AFRAIDA} and {#AFRAIDB}.
"[Who is there|What are you|Go away|Are you {a~#TRAIT} {#BIGONE}]?" {he} [whispered|asked|cried]. {>grown} {>sayG} {HeG} lit {a~#ADJ} candle and looked {s}. The [monster|shape|thing] was only {a~c:ADJ} {x:CLOTH} on {a~#ADJ} {#TOY}!
{A} [laughed|giggled] {#FAST} and [put on|folded|put away] the {c} {x}. {He} [slept|kept it] {s2:SPOTB} with {a~#ADJ} {#TOY}, and the dark felt [soft|small|friendly|warm] and [quiet|kind|gentle|cozy].""",
    "the new neighbor": """{a~n:TRAIT} {BK:ANIMAL} named {B:NAME!A} moved into {a~h:HADJ} house {#WHERE}. {B} was too {#AFRAID} to [come out|speak|play], and sat {w:WILDSPOT} with {a~c:ADJ} {toy:TOY}.
{A} [packed|brought|wrapped up] {#TASTE} {f:FOOD} and {#GIFT}, and [knocked|tapped] on the door. "[Hello|Good {#TIME}|Welcome]," said {A}. "Do you like {k1:LOVEA}?" {B} [smiled|nodded|looked up]. "[Yes|No], but I love {#LOVEB}," {he2} said {#SOFTLY}.
{>walk} They [shared|ate] the {f} and {toy.did} the {c} {toy} {p:PLACE.at}. By {#DAY}, {A} and the {n} {BK} were [best|good|true] friends.""",
    "the quarrel": """{A} and {B:NAME!A} the {BK:ANIMAL} found {a~c:ADJ} {toy:TOY} {w:WILDSPOT}. "[I saw it first|It is mine|I found it]!" said {A}. "[No, it is mine|Let go|You always take everything]!" said {B}. They [pulled|tugged] {#FAST} until {B} fell into {a~#ROUGH} [puddle|bush|bucket|pile of hay] with {#NUM} {#WILD.pl}.
{A} went home {#FAST}, but {he} felt {s:SADA} and {#SADB}. {>grown} {>sayG} So {A} [took|carried|brought] the {toy} and {#GIFT} to {B}. "I am sorry," {he} said {#SOFTLY}. "[You can have it on {#DAY}|Let us share it|Let us take turns|We could play {p:PLACE.at}]."
{B} {toy.did} the {c} {toy} in the {#TIME}, and {A} sang about {#SONG}.""",
    "the race": """{a~#TRAIT} {j:JOB} held a race from {a~h:HADJ} {#HOUSE} to {p:PLACE.sees}. The prize was {x:GIFT}. {A} wanted to win, but {B:NAME!A} the {BK:ANIMAL} was [very fast|faster|stronger|in front]. {>walk}
[Halfway there, {B} fell over {a~#ADJ} {#TOOL} and hurt {his2} [knee|foot|nose]. {A} [stopped|turned back]. {>sayA} {A} [helped {B} up|tied {a~#ADJ} {#CLOTH} around it], and they [walked|ran|limped] to the end together.|{A} ran {#FAST}, then {#SOFTLY}, and did not stop to pick {a~#FRUIT}. {B} stopped {#WILDSPOT} to nap, and {A} came first by {#NUM} steps.]
The {j} [clapped|cheered|smiled] and gave {x.the} to {A}. {A} [shared it|took turns with it] with {B}, and {#NUM} {#LOOK} {#WILD.pl} [cheered|clapped|danced].""",
    "the seed": """{A} [got|was given|bought] {a~c:ADJ} seed from {a~#TRAIT} {j:JOB}. {He} put it in a pot {s:SPOT} and [watered it|sang to it] every {#TIME}. After {#NUM} days, [nothing grew|there was only mud|the pot was still empty]. {>oh}
{>friend} {>sayB} So they [moved|carried|took] the pot to a place {#WHERE} and sang to it about {#SONG} and {#DREAM}. On {#DAY}, a {z:COLOR} leaf came up, and then {a~#COLOR} {fl:FLOWER}!
{A} [gave|showed] it to {B}, {a~#TRAIT} {#JOB} and {#NUM} {#TRAIT} {#WILD.pl}. There was no {fl} as [lovely|pretty|bright|tall|fine] {#WHERE}.""",
    "the snowman": """{A} and {B:NAME!A} the {BK:ANIMAL} made a snowman {p:PLACE.at}. It had {a~f:FRUIT} for a nose, {#NUM} {th:THING.pl} for buttons and {a~c:ADJ} {x:CLOTH}. They named it [Mister|Captain|Uncle|King] {#PETNAME} and sang about {#SONG}.
The next {#TIME}, the sun was {#SKY}, and the snowman began to [melt|drip|shrink]. {>oh} {>sayB} They [put|rolled|carried] it {w:WILDSPOT} and covered it with {#ADJ} {#THING.pl} and {#COLOR} {#FLOWER.pl}.
But at last only the {c} {x} and the {f} were left. "[I will come back|See you next winter|Keep my {x}|I dream of {#DREAM}]," [it|the wind] seemed to say {#SOFTLY}. {A} [kept|wore|folded] the {x} until [the snow|winter] came again, and made {#NUM} {#ADJ} snowmen with {B}.""",
    "the drifting boat": """{A} sat in {a~c:ADJ} boat with {#TASTE} {f:FOOD} and {a~#ADJ} {#TOY}. The rope [broke|slipped|came loose], and the boat [drifted|floated] past {a~#LEAFY} {#TREE} and {#NUM} {#WILD.pl}. {>oh} {He} had no {u:TOOLA} and the water was [deep|cold|fast|dark].
"[Help|Hello|Over here]!" {he} [shouted|called|cried]. {>friend} {B} [threw|held out|pushed out] {a~v:TOOLB}. {A} [held|grabbed|caught] the {v} and {B} pulled {#FAST}. "[Hold tight|Do not let go|Almost there|Think of {#FOOD}]!" {he2} [called|shouted|sang] {#FAST}.
The {c} boat [bumped|slid|came] onto the [sand|grass|mud]. {A} tied it to {a~#LEAFY} {#TREE} with {#NUM} knots, and they shared the {f} {#WILDSPOT}.""",
    "lost in the woods": """{A} went [to pick {#FRUIT.pl}|to look for {#THING.pl}|for a walk] in the {#HADJ} woods. {He} followed {a~#LOOK} {w1:WILD} until {he} could not see the path. {>oh} The trees were [tall|dark|still] and {a~#BIRD} [called|hooted|cried] {#SOFTLY}.
{>friend} {>sayB} {A} [told {B} about|said {he} lived in] {a~h:HADJ} {ho:HOUSE} with {a~c:COLOR} door and {#NUM} {#FLOWER.pl}. They [dropped|left] {#ADJ} {th:THING.pl} on the path and passed {#NUM} {#LOOK} {#WILD.pl} and {a~#TRAIT} {#JOB}.
Soon {A} saw the {h} {ho} and the {c} door. {His} {#GROWN} [ran out|was waiting] with {#TASTE} {#FOOD}, and {B} [stayed|was asked] for supper. The {th.pl} [showed {B} the way|led {B}] home.""",
    "the sore paw": """{A} heard [crying|a whimper|a groan] {w:WILDSPOT}. It was {a~tr:TRAIT} {an:BIGONE} with {a~#ADJ} [thorn|splinter|burr|nail|needle] in its [left|right|front|back] [foot|paw]. {A} was {#AFRAID}, for the {an} had {#NUM} {#ADJ} [teeth|claws|toes|spots]. "[Please help me|It hurts|Will you help]," said the {an}. {>sayA}
{He} [pulled|took|worked] it out {#SOFTLY} and wrapped it in {a~c:ADJ} {x:CLOTH}. The {an} [thanked {him}|bowed|licked {his} hand|gave {him} {#GIFT}] {#SOFTLY} and [went away|left]. {^#NUM} days later, {A} fell into {a~#ROUGH} [hole|ditch|stream] {#WHERE} with {a~#ADJ} {#TOY} and {#GIFT}.
Who came? It was the {tr} {an} with the {c} {x}! The {an} [pulled|lifted|carried] {him} out with {a~#ADJ} {#TOOL} and they ate {#TASTE} {#FOOD} {#WILDSPOT}.""",
    "who ate it": """{A} put {#TASTE} {f:FOODA} {s:SPOTA}. When {he} came back from {#DOING}, the plate was empty! {>oh} {He} asked {his} {G:GROWN}, but {heG} was {#DOING}. {He} asked {B:NAME!A} the {BK:ANIMAL}, but {he2} was {#DOING} {p:PLACE.at}.
Then {A} saw {#NUM} {c:COLOR} [crumbs|paw prints|spots] {s2:SPOTB} and followed them {w:WILDSPOT}. There sat {a~tr:TRAIT} {an:PET}, as round as {a~#ADJ} {#FRUIT}. The {an} {an.does} {#SOFTLY}. "[I was so hungry|I could not stop|It smelled so good]," it seemed to say.
{A} [laughed|smiled|shook {his} head] and [forgave|hugged|patted] the {an}. {B} brought {#TASTE} {#FOODB}, and {his} {G} gave the {tr} {an} {a~#ADJ} {#HOLDER}.""",
    "learning to ride": """{A} got {a~c:ADJ} [bike|bicycle] from {his} {G:GROWN}. {He} got on, [wobbled|rolled|swayed] past {a~#LEAFY} {#TREE} and fell into {a~#ROUGH} [bush|puddle|haystack] {#WHERE}. "[I cannot do it|It is too hard|I give up|Bikes are for {#BIGONE.pl}]," {he} [said|cried|sniffed]. {>sayG}
{His} {G} held the seat with {a~x:CLOTH}, and {A} tried {n:NUM} times. [On {#DAY}|The next {#TIME}|After a while], {he} [rode|rolled] past {a~#HADJ} {#HOUSE}, {#NUM} {#LOOK} {#WILD.pl} and {a~#TRAIT} {#JOB}, and looked back. {His} {G} [was far behind|had let go|was waving {a~#COLOR} {#CLOTH}]!
"I [can ride|did it]!" [shouted|cried|sang] {A}. {He} rang the bell {#FAST} and rode the {c} [bike|bicycle] to {p:PLACE.sees} to buy {#TASTE} {#FOOD}.""",
    "learning to swim": """{A} stood by the [lake|river|sea|pond] and watched {B:NAME!A} the {BK:ANIMAL} swim with {#NUM} {#TRAIT} {#WATER.pl}. The water looked [cold|deep|dark|wide|wild], and {A} was {#AFRAID}. {>oh} {>sayB}
First {A} put in one [toe|foot] {#SOFTLY}. Then {he} [blew bubbles|floated like {a~#ADJ} {#FRUIT}|kicked like {a~#TRAIT} {#WILD}]. {B} held {his} [hand|arm|{#CLOTH}] and told {him} about {#SONG} and {#DREAM}.
By {#DAY}, {A} could swim to {a~#ADJ} {#ROCK} and back {#NUM} times. {He} found {a~#ADJ} {x:THING} [under the water|on the bottom] and gave it to {B}, and {a~#TRAIT} {#WATER} [splashed|cheered|swam] {#FAST}.""",
    "the shy singer": """there was a show {p:PLACE.at}. {B:NAME!A} the {BK:ANIMAL} was going to [juggle|dance with] {#NUM} {#FRUIT.pl}, and {A} was going to sing about {so:SONG}. But {A} was so {#AFRAID} that {he} hid {w:WILDSPOT} in {a~c:ADJ} {x:CLOTH}. {>oh}
{>sayB} "[Look only at me|Sing it to the {#TREE}|Think of {#FOOD}]," {he2} added. {A} [held|squeezed] {#GIFT} for luck and walked out {#SOFTLY}. At first {his} voice was as [small|thin|quiet] as {a~#LOOK} {#WILD}. Then it [grew|rose] like {a~#SKY} [wind|wave|cloud].
{^a~#TRAIT} {j:JOB} [threw|brought] {#NUM} {#COLOR} {#FLOWER.pl}, and everybody sang about {so}. {B} [waved|wore|folded] the {c} {x} {#FAST}.""",
    "the broken bridge": """{A} had to bring {x:GIFT} to {his} {G:GROWN}. But the [storm|flood|wind] had broken the {#HADJ} bridge, and {a~tr:TRAIT} {an:BIGONE} sat {w:WILDSPOT}, {#SAD} and {#AFRAID}. {>oh} {>friend} {>sayB}
{A} found {a~u:TOOLA}, {B} found {a~v:TOOLB}, and the {an} [carried|pushed|rolled] {#NUM} {#ADJ} logs. They [worked|hammered|built] until {#TIME} and sang about {#SONG}. {>walk}
The new bridge was [strong|wide|straight] and {c:COLOR}. {A} crossed first, then the {tr} {an}, then {B}. {His} {G} [loved|smiled at|thanked {A} for] {x.the} and gave them {#TASTE} {#FOOD}.""",
    "the sick friend": """{A} went to see {B:NAME!A} the {BK:ANIMAL}, but {B} was [sick|ill] in bed with {a~c:ADJ} {x:CLOTH} around {his2} [neck|head|ears]. "My [throat|head|tummy|tail] hurts, and I wanted to see {p:PLACE.sees} on {#DAY}," [said|sniffed|whispered] {B}. {A} felt {#SAD}.
{>grown} {>sayG} {A} and {his} {G} {f:FOOD.made} {f} with {fr:FRUIT.pl} and {a~#ADJ} {#FLOWER}. {>walk} {B} ate {#NUM} bowls and [stopped sneezing|sat up|began to smile]. {A} {toy:TOY.did} {a~#ADJ} {toy} and sang about {#SONG}.
[A week later|After {#NUM} days|By {#DAY}|The next {#DAY}], {B} was well again. {He2} [folded|washed|gave {A}] the {c} {x}, and they [went|ran|skipped] out to see {#NUM} {#LOOK} {#WILD.pl}.""",
    "the letter": """{A} [found|was given] a letter in {a~c:COLOR} envelope {w:WILDSPOT}. It said, "For {B:NAME!A} the {BK:ANIMAL}, who lives in {a~h:HADJ} {ho:HOUSE} {wh:WHERE}." "I will [bring|take|deliver] it," said {A}. {>walk}
[The wind [took|stole] the letter, and {A} [chased|followed] it past {a~#LEAFY} {#TREE} until it fell {#WILDSPOT}.|It began to rain, so {A} hid the letter under {a~#ADJ} {#CLOTH} and waited {#WILDSPOT} with {a~#TRAIT} {#BIRD}.|{^a~tr:TRAIT} {r:BIRD} showed {him} the way for {a~#TASTE} {#FRUIT}.]
At last {A} came to the {h} {ho}. {B} opened the {c} envelope [and read it {#FAST}|with {a~#ADJ} {#TOOL}]. "My {G:GROWN} is coming on {#DAY} with {#GIFT}!" said {B}. "{>thanks}, {A}." They [ate|had] {#TASTE} {#FOOD} together.""",
    "the key": """{A} found {a~c:ADJ} key {w:WILDSPOTA}. What did it open? {He} tried {a~#ADJ} box {s:SPOTA}, {a~#HADJ} [gate|door] {#WHERE} and {a~#TOY}, but it did not fit. {>oh} {>friend} {>sayB}
{B} knew of {a~d:HADJ} door {v:WILDSPOTB}. The {c} key turned with a [click|squeak|clunk]. Inside was a room full of {#COLOR} {#THING.pl}, {#NUM} {#ADJ} {toy:TOY.pl} and {a~#TRAIT} {an:WILD}. "[I was locked in|I lost my key|I have waited] for {#NUM} days," said the {an}.
The {an} gave {A} {a~#ADJ} {toy} and gave {B} {a~#COLOR} {#THING}. {A} hung the {c} key {s2:SPOTB}, and they [visited|went to see] the {an} every {#DAY}.""",
    "the fallen star": """{A} saw a star fall from the sky and land {w:WILDSPOT}. It was as small as {a~f:FRUIT} and shone {#COLOR} like {a~#ADJ} lamp. "I am {#SAD}, and I [miss|want to see] {#DREAM} and my {#NUM} {#TRAIT} sisters," [it said|said the star] {#SOFTLY}. {>oh} {>sayA}
{He} put the star in {a~b:ADJ} {u:HOLDER} and asked {B:NAME!A} the {BK:ANIMAL}, who was {#DOING}. {>sayB} They [climbed|walked] past {#LOOK} {#WILD.pl} and {#COLOR} {#FLOWER.pl} to the top of {a~#LEAFY} {#TREE} {#WHERE}. {B} [held|lifted] the {b} {u}, and {A} [threw|pushed|tossed] the star up {#SOFTLY}.
It flew [higher and higher|up and up|over {a~#TREE}]. Now all the stars [shine|wink|glow] over {p:PLACE.sees}, and each {#DAY} the smallest one [winks|smiles|waves] at {A}.""",
    "the hungry dragon": """a dragon came to {p:PLACE.sees} and [roared|cried|stamped]. It was {c:COLOR}, with {#NUM} {#ADJ} [horns|wings|teeth|spots]. The {j:JOB} hid {s:WILDSPOT}, and {a~#TRAIT} {#WILD} ran away. But {A} was {#TRAITA} and {#TRAITB}. {He} asked, "Dragon, are you {sa:SAD} or hungry?" 
"I am {sa} and hungry," said the {c} dragon. "[Nobody|No one] gives me {#TASTE} {f:FOOD}." {>friend} {>sayB} {A} and {B} {f.made} {f} with {#NUM} {#ADJ} {#FRUIT.pl} in a pot as big as {a~#HADJ} {#HOUSE}. The dragon ate until {#DAY} and [burped|hummed|purred] a {#COLOR} cloud.
After that, it [warmed|lit|heated] the stove of the {j}, carried {#NUM} {#TRAIT} {#WILD.pl} on its back and [hummed|told stories] about {#SONG}.""",
    "the strange noise": """{A} woke up. There was a noise {s:SPOTA}: [thump|tap|scratch|squeak|knock], [thump|tap|scratch|squeak|knock]! {A} was {#AFRAID} and hid {s2:SPOTB} with {a~c:ADJ} {toy:TOY}. "Maybe it is {a~#ADJ} [ghost|monster|robber|giant]," {he} thought. {>grown} {>sayG}
They took {a~#ADJ} {#TOOL} and {a~#ADJ} lamp. {His} {G} counted to {#NUM}, and {A} [lifted|pulled|opened] {a~#ADJ} [cloth|lid|curtain]. Out [came|rolled|tumbled|crawled] {a~#TRAIT} {an:PET} with {a~#TASTE} {#FRUIT}! "{^an.says}!" it said. It was {#SAD} and wanted {#TASTE} {#FOOD}.
{A} made a bed for the {an} {s} with {a~#ADJ} {#CLOTH} and {#NUM} {#ADJ} {#THING.pl}, and gave it the {c} {toy}. {His} {G} named it {nm:PETNAME}.""",
    "the spilled paint": """{A} was painting the {h:HADJ} fence {c:COLOR}. {^a~#TRAIT} {#WILD} [came|ran|rushed|tumbled] by, and {A} [jumped|turned around|slipped]. [Splash|Splosh|Oops]! The paint [fell|spilled|ran] on {his} {G:GROWN}'s {d:ADJ} {x:CLOTH}. {A} hid it {s:SPOT} and felt {#SAD}. {>friend}
{>sayB} So {A} [took out|brought] the {x}. "I spilled {c} paint on it," {he} said {#SOFTLY}, and gave {his} {G} {#GIFT}. {His} {G} was [quiet|still] for {#NUM} [breaths|heartbeats].
"[Thank you for telling me|Never mind|I forgive you]," {heG} said {#SOFTLY}. "Let us paint {#COLOR} {#FLOWER.pl} and {#LOOK} {#WILD.pl} on it." Soon the {x} was {#COLORA} and {#COLORB}, and {a~#TRAIT} {#JOB} wanted one.""",
    "the treasure map": """{A} found a map {s:SPOT}, inside {a~#ADJ} {o:CLOTH}. It said, "Walk {#NUM} steps from the {t:TREE}, turn at the {h:HADJ} {ho:HOUSE}, and dig {w:WILDSPOT}." {>friend} "[A treasure|Let us go|How exciting|Let us dig]!" [said|cried|sang] {B} {#FAST}. {>walk}
They took {a~#ADJ} {u:TOOL} and {#TASTE} {f:FOOD}, and [counted|walked|hopped] the steps from the {t}. At the {h} {ho}, {a~tr:TRAIT} {an:BIGONE} [blocked|guarded|sat on] the path. "[What is the magic word|Who goes there|What do you bring me|Are you {#GLAD}]?" [said|growled|asked] the {an}. {A} gave it {a~#TASTE} {#FRUIT} and {#GIFT}.
They dug {w} and found {a~c:ADJ} chest. In it were {#NUM} {#ADJ} {x:THING.pl}, {#GIFT} and a note: "{^#MORAL}." {A} gave {B} half of the {x.pl}, and they ate the {f} under the {t}.""",
    "the loose tooth": """{A} had a loose tooth. It [wiggled|wobbled|hurt] when {he} ate {#TASTE} {#FOOD} and when {he} bit {a~fr:FRUITA}. "[Pull it|Tie it to {a~u:TOOL}|Leave it alone|Eat {a~#FRUITB}]," said {B:NAME!A} the {BK:ANIMAL}. {A} was {#AFRAID}. {He} hid {s:SPOT} with {a~c:ADJ} {x:CLOTH} over {his} mouth. {>grown} {>sayG}
Then {a~#TRAIT} {#WILD} [came|ran|rushed|tumbled] by with {a~#ADJ} {#TOY} and {#GIFT}. {A} laughed {#FAST}, and the tooth fell {#WILDSPOT}! {A} and {B} looked {#FAST} until they found it [beside|under|next to] {a~#ADJ} {#THING}.
{A} put the tooth under the {c} {x}. In the {#TIME} there was {#GIFT} and a [note|card] that said, "{>thanks}." """,
    "a gift for grandma": """{A} wanted a gift for {his} {G:GROWN}, but {he} had only {n:NUM} [coins|pennies] in {a~c:ADJ} {o:CLOTH}. {He} went to the market {#WHERE}. {^x:GIFTA} cost {#NUM} {#COLOR} coins, and {#GIFTB} cost {#NUM}. {>oh}
{^a~#TRAIT} {j:JOB} needed help with {#DOING}, so {A} helped until {#TIME}. {>friend} {B} was selling {#TASTE} {#FOOD}. {>sayB} {B} gave {him} {a~#ADJ} {b:THINGA} and {a~#COLOR} {k:THINGB}.
{A} [glued|tied|sewed] the {b} and the {k} onto {a~#ADJ} card and drew {#LOOK} {#WILD.pl} and {#COLOR} {#FLOWER.pl}. "[I made it for you|This is for you]," {he} said. {His} {G} put the card {s:SPOT} and [hugged|kissed] {him} {#SOFTLY}.""",
    "the stopped clock": """the {h:HADJ} clock {#WHERE} stopped, and nobody knew [the time|when to eat]. The {j:JOBA} was late, the {j2:JOBB} was early, and the {an:PET.pl} slept until {#DAY}. {A} climbed up with {a~u:TOOL} and {a~c:COLOR} {o:CLOTH}. {>walk}
Inside the clock, {he} found {a~tr:TRAIT} {r:BIRD} [sleeping|sitting|humming|singing] in a nest of {#THING.pl}. "[Please do not move me|My eggs are here|I have nowhere to go]," said the {r}. {>oh} {>sayA} {A} asked {B:NAME!A} the {BK:ANIMAL} for help. {>sayB}
They [built|made|painted] {a~#ADJ} box {wh:WILDSPOT} for the {r}, with {a~#ADJ} roof and {#NUM} {#COLOR} {#FLOWER.pl}. [Tick|Ding|Bong], went the clock, and the {j} [cheered|gave them {#FOOD}|hugged the {j2}].""",
}

RULES["plot"] = [" ".join(text.split()) for text in PLOTS.values()]
