"""What is drawn: the concepts, what they are called, and which drawings are kept from training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """A thing that every foundry drew.

    Attributes:
        name: One or two plain words; unique.
        code: Its Unicode code point in hexadecimal.
        synonyms: Other names, none of which is the name of another concept.
        counted: Whether it takes an article: "a fox", but "scissors".
    """

    name: str
    code: str
    synonyms: tuple[str, ...] = ()
    counted: bool = True

    def phrases(self) -> list[str]:
        """The name and the synonyms as a caption has them, the name first."""
        return [with_article(name) if self.counted else name for name in (self.name, *self.synonyms)]


def with_article(name: str) -> str:
    """Put "a" or "an" before a name, by its first sound."""
    vowel = (name[0] in "aeiou" and not name.startswith("uni")) or name.startswith("hour")
    article = "an" if vowel else "a"
    return f"{article} {name}"


TABLE = """
fox 1f98a red fox; cat 1f408 kitty; dog 1f436 puppy; lion 1f981; elephant 1f418; monkey 1f412; panda 1f43c panda bear
penguin 1f427; owl 1f989; duck 1f986 mallard; rooster 1f413 cockerel; frog 1f438 toad; turtle 1f422 tortoise
snake 1f40d serpent; whale 1f433; shark 1f988; fish 1f420 tropical fish; octopus 1f419; crab 1f980; snail 1f40c
butterfly 1f98b; bee 1f41d honeybee, bumblebee; ladybug 1f41e ladybird; spider 1f577; unicorn 1f984
rabbit 1f430 bunny, hare; pig 1f437 piggy; rose 1f339; sunflower 1f33b; cactus 1f335
palm tree 1f334 palm; pine tree 1f332 evergreen, fir; clover 1f340 shamrock; maple leaf 1f341; mushroom 1f344 toadstool
pineapple 1f34d; watermelon 1f349 melon slice; banana 1f34c; apple 1f34e; grapes* 1f347; cherries* 1f352
strawberry 1f353; avocado 1f951; carrot 1f955; corn* 1f33d maize; hamburger 1f354 burger
fries* 1f35f french fries, chips; pizza 1f355 pizza slice; ice cream 1f366 soft ice, ice cream cone
donut 1f369 doughnut; cake 1f382 birthday cake; coffee cup 2615 cup of coffee; cocktail 1f378 martini
beer mug 1f37a beer; house 1f3e0 home, cottage; castle 1f3f0 fortress; ferris wheel 1f3a1
volcano 1f30b; train 1f682 locomotive, steam engine; car 1f697 automobile; bicycle 1f6b2 bike
anchor 2693; sailboat 26f5 sailing boat; airplane 2708 plane, jet; helicopter 1f681 chopper; rocket 1f680 spaceship
bell 1f514; hourglass 231b sand timer; star 2b50; sun 2600; cloud 2601; umbrella 2602 parasol
lightning* 26a1; snowflake 2744; snowman 26c4; fire* 1f525; drop 1f4a7 droplet
pumpkin 1f383; balloon 1f388; gift 1f381 present; trophy 1f3c6 trophy cup; soccer ball 26bd football
boxing glove 1f94a; gamepad 1f3ae game controller; die 1f3b2 dice; heart 2665; glasses* 1f453 spectacles, eyeglasses
shirt 1f455 tee shirt; dress 1f457 gown; backpack 1f392 rucksack; sneaker 1f45f running shoe, trainer; crown 1f451 tiara
top hat 1f3a9; ring 1f48d; diamond 1f48e gem, gemstone; headphones* 1f3a7; saxophone 1f3b7 sax
guitar 1f3b8 electric guitar; drum 1f941 snare drum; television 1f4fa; camera 1f4f7
magnifying glass 1f50d magnifier, loupe; light bulb 1f4a1 bulb, lightbulb; book 1f4d6 open book; envelope 2709 letter
pencil 270f; scissors* 2702 shears; lock 1f512 padlock; key 1f511; hammer 1f528; sword 1f5e1 dagger; bomb 1f4a3
gear 2699 cog, cogwheel; microscope 1f52c
"""
"""Entries of "name code synonym, synonym"; a star after the name: it takes no article."""


def read_table(table: str) -> tuple[Concept, ...]:
    """Read concepts from text such as `TABLE`.

    Raises:
        ValueError: If an entry has no code point, or a name stands for two concepts.
    """
    concepts: list[Concept] = []
    taken: set[str] = set()
    for entry in (entry.strip() for line in table.splitlines() for entry in line.split(";")):
        if not entry:
            continue
        words = entry.split()
        at = next((i for i, word in enumerate(words) if word[0].isdigit()), 0)
        if at == 0:
            raise ValueError(f"no code point in the concept {entry!r}, expected 'name code synonym, …'")
        name = " ".join(words[:at])
        synonyms = tuple(text.strip() for text in " ".join(words[at + 1 :]).split(",") if text.strip())
        concept = Concept(name.rstrip("*"), words[at], synonyms, counted=not name.endswith("*"))
        for used in (concept.name, *synonyms):
            if used in taken:
                raise ValueError(f"{used!r} names two concepts")
            taken.add(used)
        concepts.append(concept)
    return tuple(concepts)


CONCEPTS = read_table(TABLE)
