"""The story words, in classes. An entry is `word` or `word; form=text; form=alternative|alternative`."""
from grammar import Word


def _plural(n):
    if n.endswith(("s", "x", "ch", "sh")):
        return n + "es"
    if n.endswith("y") and n[-2] not in "aeiou":
        return n[:-1] + "ies"
    return n + "s"


def _entries(text, **common):
    words = []
    for entry in " ".join(text.split()).split(","):
        parts = [p.strip() for p in entry.split(";")]
        if not parts[0]:
            continue
        forms = dict(common, n=parts[0], pl=_plural(parts[0]))
        forms.update(p.split("=") for p in parts[1:])
        words.append(Word(**{k: tuple(v.split("|")) for k, v in forms.items()}))
    return words


_SHE = dict(he="she", him="her", his="her", own="herself", kid="girl")
_HE = dict(he="he", him="him", his="his", own="himself", kid="boy")

GIRLNAME = _entries("""
Mia, Lily, Anna, Rosie, Clara, Nora, Emma, Ella, Ruby, Daisy, Poppy, Ivy, Hazel, Lucy, Molly, Zoe, Tess, Nina,
Maya, Lola, Bella, Sofia, Greta, Ada, Olive, Pearl, Willa, Freya, June, Alice, Amelia, Beth, Bonnie, Cora, Della, Edith, Eva, Flora, Gemma, Grace, Hattie, Heidi, Iris, Jane, Josie, Kiki, Lena, Penny, Sara, Kate, Elsie, Mabel, Fern,
Luna, Wren, Dora, Esme, Tilly""", **_SHE)
BOYNAME = _entries("""
Tom, Ben, Max, Leo, Sam, Finn, Jack, Theo, Oscar, Henry, Milo, Hugo, Felix, Jasper, Otto, Toby, Charlie, Noah, Adam, Albert, Alfie, Bobby, Bruno, Clive, Colin, Danny, David, Edgar, Frank, George, Harry, Ivan, Jacob, Jonah, Karl, Luke, Martin,
Eli, Gus, Arlo, Ned, Will, Owen, Rory, Louis, Peter, Robin, Simon, Archie, Barney, Basil, Casper, Dylan, Ernie,
Freddie, Kit, Monty, Pip, Rufus""", **_HE)
GIRL = _entries("girl")
BOY = _entries("boy")
ANIMAL = _entries("""
rabbit, fox; pl=foxes, bear, mouse; pl=mice, hedgehog, squirrel, badger, otter, duck, cat, dog, pig, goat, frog,
turtle, beaver, raccoon, mole, penguin, koala, panda, lamb, hamster, owl""")

TRAIT = _entries("""
little, kind, brave, curious, shy, clever, cheerful, gentle, quiet, funny, friendly, careful, playful, dreamy,
polite, patient, sleepy, silly, merry, thoughtful, stubborn, honest, lively, small,
jolly, tidy, messy, hungry, nosy, dizzy, sunny, mighty, humble, bouncy, helpful, wise, young, graceful, calm,
bold, cuddly, chatty, grumpy, tiny, fearless, loyal, sweet, dear""")
HADJ = _entries("""
tiny, cozy, crooked, old, yellow, blue, white, red, green, warm, snug, round, tall, sunny, wooden, stone, narrow,
little, pretty, dusty,
purple, pink, bright, quiet, low, mossy, cheery, sturdy, tidy, shady, hidden, plain""")
HOUSE = _entries("""
cottage, house, hut, cabin, farmhouse, tower, lighthouse, mill, treehouse, cabin on wheels,
barn, shed, shack, lodge, windmill, castle, wagon, tent, boathouse, inn""")
WHERE = _entries("""
by the sea, near the woods, on a hill, beside the river, next to the school, at the end of the lane, by the lake,
behind the bakery, in the valley, under the tall oak, near the meadow, by the old bridge, on Cherry Street,
in the middle of the village, across from the park, at the foot of the mountain,
at the edge of town, beside the orchard, near the waterfall, behind the church, on the island, past the mill, by the well,
between two hills""")
FAMILY = _entries("""
mother, father, grandmother, grandfather, aunt, uncle, two sisters, three brothers, mother and father, big brother,
big sister, baby sister, whole family, grandparents""")
GROWN = _entries("mother, grandmother, aunt, big sister, mom, grandma", **_SHE) + _entries(
    "father, grandfather, uncle, big brother, dad, grandpa", **_HE)

COLOR = _entries("""
red, blue, green, yellow, purple, orange, pink, white, brown, silver, golden, black,
gray, violet, scarlet, turquoise, cream, copper, lilac, crimson""")
ADJ = _entries("""
red, blue, green, yellow, purple, orange, pink, white, brown, silver, golden, black, tiny, old, new, shiny, wooden,
soft, big, little, round, striped, spotted, bright, pretty, fancy, heavy, dusty, painted, plain,
velvet, copper, glass, paper, woolen, crooked, fuzzy, fluffy, wobbly, gray, sparkling, muddy, broken, funny,
smooth, long, tall, thin, lovely, neat, enormous, rusty, floppy, patched, magic, checkered, thick, sticky, humming, strange""")
TOY = _entries("""
ball; did=bounced|rolled|kicked|tossed, kite; did=flew|carried|lifted, doll; did=hugged|dressed|rocked,
drum; did=tapped|beat|banged, boat; did=sailed|floated|pushed, train; did=pushed|pulled|raced,
book; did=read|opened|carried, wagon; did=pulled|pushed|filled, whistle; did=blew|polished, puzzle; did=built|solved,
robot; did=wound up|marched|fixed, teddy bear; did=hugged|squeezed|rocked, top; did=spun|twirled,
rocket; did=launched|raised|tossed, trumpet; did=blew|polished, scooter; did=rode|raced|pushed,
sled; did=pulled|rode|pushed, bucket; did=filled|swung|carried, lantern; did=lit|raised|swung,
umbrella; did=opened|twirled|raised, basket; did=filled|swung|carried, music box; did=wound up|opened|played,
paper plane; did=folded|tossed|flew, marble; did=rolled|polished, puppet; did=danced|dressed|waved,
telescope; did=aimed|polished|raised, bell; did=rang|shook|polished, crayon box; did=opened|shook|filled,
toy car; did=rolled|raced|pushed, toy horse; did=rode|brushed|fed, hoop; did=rolled|spun|twirled,
flute; did=played|polished|tapped""")
CLOTH = _entries("""
hat, scarf, coat, mitten, boot, sweater, ribbon, sock, cap, cape, glove, shoe, button, necklace,
apron, vest, belt, shirt, bow tie, slipper, bonnet, jacket, shawl, sash, raincoat, sandal, bracelet, crown,
backpack, bandana, nightcap, blanket""")
PET = _entries("""
kitten; says=meow; does=purred|meowed, puppy; says=woof; does=barked|yipped, duckling; says=quack; does=quacked,
chick; says=peep; does=peeped|cheeped, lamb; says=baa; does=bleated, piglet; says=oink; does=oinked|squealed,
pony; says=neigh; does=neighed|snorted, calf; says=moo; does=mooed, goose; says=honk; does=honked; pl=geese,
kid goat; says=maa; does=bleated, hen; says=cluck; does=clucked, donkey; says=hee-haw; does=brayed""")
WILD = _entries("""
rabbit; did=hopping, squirrel; did=climbing, frog; did=jumping, duck; did=swimming, deer; did=grazing; pl=deer,
snail; did=crawling, beetle; did=marching, butterfly; did=fluttering, bee; did=buzzing, sparrow; did=hopping,
crow; did=cawing, goat; did=chewing, sheep; did=grazing; pl=sheep, cow; did=munching, hen; did=pecking,
ladybug; did=crawling, dragonfly; did=humming, lizard; did=resting, turtle; did=napping, mouse; did=nibbling; pl=mice,
cat; did=stretching, ant; did=marching, swan; did=swimming; pl=swans, goose; did=honking; pl=geese,
hedgehog; did=sniffing, fox; pl=foxes; did=running, donkey; did=dozing, pigeon; did=cooing, spider; did=spinning,
caterpillar; did=munching, grasshopper; did=jumping, worm; did=wriggling, pony; did=trotting, otter; did=diving,
bunny; did=hopping, chipmunk; did=climbing, toad; did=sitting, moth; did=fluttering, cricket; did=singing, peacock; did=strutting""")
BIRD = _entries("""
robin, sparrow, blackbird, crow, wren, swallow, magpie, owl, pigeon, finch, bluebird, seagull,
lark, dove, cuckoo, stork, jay, heron, kingfisher, woodpecker, starling, raven, nightingale, canary""")
TREE = _entries("""
oak, apple tree, willow, pine, birch, maple, pear tree, cherry tree, chestnut, elm, fig tree, lime tree,
plum tree, walnut tree, ash, beech, cedar, hazel bush, lemon tree, poplar, spruce, alder, peach tree, rose bush""")
FLOWER = _entries("""
daisy, tulip, rose, poppy, violet, buttercup, sunflower, bluebell, lily, pansy, daffodil, marigold,
iris; pl=irises, snowdrop, primrose, peony, dandelion, orchid, foxglove, crocus, clover; pl=clovers, cornflower,
snapdragon, forget-me-not""")
FOOD = _entries("""
cake; made=baked, soup; made=cooked|stirred, bread; made=baked, apple pie; made=baked, pancakes; made=fried|flipped,
porridge; made=cooked|stirred, cookies; made=baked, sandwiches; made=made|packed, muffins; made=baked,
jam tarts; made=baked, stew; made=cooked|stirred, honey buns; made=baked, pudding; made=cooked|stirred,
noodles; made=cooked, dumplings; made=cooked|rolled, waffles; made=made, plum jam; made=cooked|stirred,
cheese toast; made=made, berry pie; made=baked, lemonade; made=made|stirred,
toast; made=made, rice pudding; made=cooked|stirred, scones; made=baked, popcorn; made=made, potato soup; made=cooked|stirred,
carrot cake; made=baked, pea soup; made=cooked|stirred, cinnamon rolls; made=baked, fruit salad; made=made|mixed,
gingerbread; made=baked, pizza; made=baked, cocoa; made=made|stirred, apple juice; made=made, roasted chestnuts; made=made,
corn bread; made=baked, cheese pie; made=baked, omelets; made=fried|made, peach ice cream; made=made, vegetable stew; made=cooked|stirred,
custard; made=cooked|stirred""")
FRUIT = _entries("""
apple, pear, plum, cherry, strawberry, carrot, pea, pumpkin, blueberry, grape, peach; pl=peaches, turnip, bean, melon,
raspberry, nut,
apricot, lemon, fig, radish, beet, tomato; pl=tomatoes, potato; pl=potatoes, walnut, blackberry, mushroom, onion,
gooseberry, lime, cucumber, date, parsnip""")
PLACE = _entries("""
garden; at=in the garden; sees=the roses|the bean rows|the wet grass|the garden wall,
beach; at=on the beach; sees=the waves|the white shells|the crabs|the wet sand,
forest; at=in the forest; sees=the mushrooms|the tall ferns|the mossy stones|the dark trees,
park; at=in the park; sees=the swings|the pond|the benches|the fountain,
meadow; at=in the meadow; sees=the clover|the long grass|the poppies|the stone wall,
market; at=at the market; sees=the fruit stalls|the cheese stand|the flower carts|the baskets,
barn; at=in the barn; sees=the hay|the old cart|the milk pails|the sleepy cows,
lake; at=by the lake; sees=the reeds|the ducks|the rowboats|the still water,
hill; at=on the hill; sees=the clouds|the sheep|the windmill|the winding path,
river; at=by the river; sees=the stepping stones|the tall reeds|the little fish|the muddy bank,
orchard; at=in the orchard; sees=the ladders|the fallen apples|the bees|the twisted trees,
harbor; at=at the harbor; sees=the fishing boats|the gulls|the ropes|the tall masts,
schoolyard; at=in the schoolyard; sees=the big slide|the chalk lines|the bell|the fence,
library; at=at the library; sees=the tall shelves|the picture books|the reading lamps|the maps,
farm; at=on the farm; sees=the tractor|the hens|the corn|the wooden gate,
train station; at=at the train station; sees=the big clock|the red engine|the tracks|the trunks""")
SPOT = _entries("""
under the bed, behind the sofa, in the cupboard, under the table, behind the door, on the top shelf, in the laundry
basket, behind the curtain, under the stairs, in the toy box, beside the stove, under the blanket, on the windowsill,
behind the clock, inside a boot, in the kitchen drawer, under a pillow, beside the bathtub, in the coat pocket,
under the rug,
behind the bookcase, under a chair, in a teapot, on the piano, in the attic, beside the fireplace, under the lamp,
in the bread box, behind the coat rack, on the kitchen shelf""")
WILDSPOT = _entries("""
under a bush, behind a rock, in a hollow log, beside the well, under the bridge, in the tall grass, behind the barn,
near a puddle, between two roots, in a pile of leaves, beside the fence, under a cart, behind a flowerpot,
at the edge of the pond, in a muddy ditch, beside an anthill, on a tree stump, by the garden gate,
inside a barrel, under the hedge,
behind a haystack, under a willow, on a flat stone, in the clover, beside the path, behind a windmill, in a patch of mud,
between two rocks, under a mushroom, on the low wall, by the mailbox, in an old wheelbarrow, behind the shed, near the beehives,
beside a stream, in the shade, on top of a hill, next to a scarecrow, under a bench, in the pumpkin patch""")
GLAD = _entries("""
happy, glad, proud, cheerful, excited, delighted, thankful, joyful, pleased, merry,
grateful, content, hopeful, warm inside, lucky, jolly, calm inside, very happy, brave, full of joy""")
SAD = _entries("""
sad, worried, upset, unhappy, gloomy, lonely, troubled, miserable,
sorry, grumpy, blue, very sad, homesick, tired, confused, hopeless""")
AFRAID = _entries("""
scared, afraid, nervous, frightened, shaky, uneasy,
worried, very scared, jumpy, timid, alarmed, unsure""")
LOVE = _entries("""
to paint pictures, to count the stars, to climb trees, to sing songs, to bake bread, to collect shells, to tell jokes,
to read books, to dance, to build towers, to water the flowers, to chase butterflies, to splash in puddles, to draw maps,
to fly kites, to feed the birds, to play hide and seek, to write poems, to fix old clocks, to whistle, to ride on the
swing, to jump over logs, to sew buttons, to pick berries, to look at the moon, to dig holes, to roll down hills,
to play the drum, to skip stones, to make paper hats,
to juggle, to plant beans, to ride ponies, to watch trains, to make soup, to tell riddles, to build sand castles, to catch leaves,
to invent games, to hum, to walk in the rain, to swim, to play the flute, to wear funny hats, to visit the market, to make new friends,
to watch the clouds, to listen to owls""")
DOING = _entries("""
painting pictures, baking bread, reading a book, sweeping the floor, singing a song, picking berries, building a tower,
watering the plants, drawing a map, mending a sock, feeding the hens, washing the dishes, stacking blocks,
knitting a scarf, raking leaves, playing cards, cutting paper stars, skipping rope, looking for shells, polishing shoes,
hanging up the wash, peeling potatoes, chasing a hoop, counting clouds,
writing a letter, mixing batter, tying knots, folding napkins, planting beans, telling riddles, fixing a chair, milking a cow,
painting a door, sewing a pillow, building a kite, drinking tea, chopping wood, brushing a pony, stirring soup, shelling peas""")
TIME = _entries("""
morning, afternoon, evening""")
DAY = _entries("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
SKY = _entries("""
sunny, rainy, windy, cloudy, foggy, snowy, warm, cold, bright, stormy, quiet, misty, chilly, golden, frosty, breezy,
hazy, dewy, gray, clear, blustery, damp, mild, drizzly""")
NUM = _entries("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fifteen, twenty, thirty, fifty")
SOFTLY = _entries("softly, gently, quietly, kindly, slowly, carefully, calmly, warmly, politely, sweetly, shyly, sleepily, patiently, wisely, dreamily, thoughtfully")
FAST = _entries("quickly, happily, bravely, eagerly, proudly, cheerfully, gladly, boldly, merrily, loudly, joyfully, excitedly, swiftly, busily, wildly, clumsily")
TASTE = _entries("warm, sweet, hot, fresh, spicy, buttery, creamy, salty, crispy, sticky, golden, delicious, tasty, cold, crunchy, soft, yummy, homemade, plain, leftover, tangy, fluffy, burnt, rich")
GIFT = _entries("""
a silver bell, a warm scarf, a jar of honey, a blue feather, a little cake, a shiny coin, a paper crown, a wooden flute,
a bag of nuts, a bunch of daisies, a smooth pebble, a striped ribbon, a pot of jam, a golden button, a tiny lamp,
a painted cup, a woolen hat, a seashell,
a red balloon, a tin whistle, a bag of marbles, a clay pot, a glass bird, a lemon drop, a straw basket, a jar of pickles,
a bright lantern, a round cheese, a picture book, a ball of yarn, a small spoon, a sack of flour""")
TOOL = _entries("""
rope, ladder, stick, net, broom, bucket, basket, spoon, blanket, plank, hook, pole, fishing rod, shovel, wheelbarrow,
wagon, oar, lantern, rake, hammer, spade, saw, chain, crate, sack, kettle, barrel, board, raft, whistle""")
THING = _entries("""
pebble, acorn, feather, leaf; pl=leaves, shell, button, pine cone, coin, twig, flower, seed, berry, marble, ribbon, bead,
stone, key, bottle cap, ring, spool, thimble, dewdrop, pin, chestnut, petal, straw, stamp, bow, pea pod, clothespin""")
SONG = _entries("""
the moon, the sea, a sleepy bear, a dancing pig, the rain, two brave mice, a silver ship, the summer wind,
a hungry whale, the stars, a lost sock, the first snow, a jolly baker, a goose in a hat, the old mill, a flying horse,
a brave snail, the north wind, seven geese, a lazy cat, the blue hills, a tiny king, a red balloon, an old ship,
a clever crow, a rolling cheese, the morning sun, a shy giant, two silly frogs, a lost mitten, the harvest, a little train""")
JOB = _entries("""
baker, farmer, postman, teacher, fisherman, gardener, miller, sailor, shopkeeper, painter, cook, tailor,
barber, carpenter, captain, nurse, weaver, beekeeper, clockmaker, potter, shepherd, librarian, juggler, blacksmith""")
MORAL = _entries("""
a friend is better than gold, small steps can go a long way, it is good to ask for help, being brave does not mean
being loud, sharing makes everything sweeter, the truth is always the best path, patience is a kind of magic,
kind words are never lost, trying again is the secret, everyone is good at something, a little help can be a big help,
home is where the love is, mistakes can be mended, listening is a gift, it is never too late to say sorry,
the best treasures cannot be bought,
good things take time, a smile costs nothing, every day brings something new, fear grows smaller when you share it,
even little ones can do big things, there is always room for one more, you never know until you try, a promise is a promise""")
DREAM = _entries("""
flying ships, giant pancakes, dancing bears, a castle of clouds, talking trees, a river of honey, singing whales,
the moon, a train to the stars, friendly dragons, snow in summer, tomorrow, hidden gardens, paper boats, warm bread,
a thousand lanterns,
tall ships, a castle of cake, dancing teapots, talking fish, a garden of stars, sleepy elephants, flying carpets, chocolate rain,
a golden bridge, the deep blue sea, marching ducks, a whispering forest, candy mountains, a very long nap, rainbow fish, kind giants""")

for _word in GIFT:
    _word.forms["the"] = ("the " + _word.forms["n"][0][2:],)
BIGONE = _entries("bear, wolf, lion, giant, troll, ogre, moose, tiger, elephant, bull, stag, walrus")
WATER = _entries("fish; pl=fish, swan, seal, turtle, frog, otter, eel, crab, salmon; pl=salmon, dolphin, goose; pl=geese, pike; pl=pike")
ROCK = _entries("rock, raft, buoy, log, island, jetty, boat, post, pier, lily pad, sandbank, float")
HOLDER = _entries("jar, bottle, box, cup, lantern, basket, bowl, pot, bag, mug, hat, net")
PETNAME = _entries("Pudding, Pancake, Biscuit, Muffin, Pickle, Noodle, Dumpling, Waffle, Pepper, Nutmeg, Turnip, Crumb")
LOOK = _entries("""
red, blue, green, yellow, purple, orange, pink, white, brown, silver, golden, black, tiny, old, big, little, round, striped,
spotted, pretty, fuzzy, fluffy, gray, muddy, funny, long, tall, thin, lovely, enormous, floppy, speckled, plump, wet, young,
sleepy, noisy, shy, shaggy, furry, hungry, proud, busy, gentle, lazy, clever, cheerful, dusty""")
LEAFY = _entries("""
tall, old, crooked, young, mossy, green, leafy, shady, golden, silver, thin, wide, twisted, hollow, lonely, huge, knobby, little,
bent, mighty, prickly, snowy, ancient, whispering, swaying, lovely, sturdy, bare, dark, friendly""")
ROUGH = _entries("""
big, little, muddy, deep, cold, wet, prickly, soft, tiny, huge, messy, sticky, brown, green, shady, smelly, dusty, cool, round,
enormous, hidden, slippery, warm, mossy""")
NAME = GIRLNAME + BOYNAME
# Halves of a class, for two different words of one kind in the same breath ("kind and curious").
for _name in "AFRAID COLOR DREAM FOOD FRUIT GIFT GLAD JOB LOVE SAD SPOT THING TOOL TRAIT WILDSPOT".split():
    globals()[_name + "A"], globals()[_name + "B"] = globals()[_name][::2], globals()[_name][1::2]
CLASSES = {k: v for k, v in list(globals().items()) if k.isupper() and isinstance(v, list)}
