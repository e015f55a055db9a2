"""Captions to begin with: composed from lists, the same on every machine, without a download.

They name no people, places or brands. They are a start and not a substitute for prompts of one's own: a student learns
to draw what it is asked for in training, at the length and in the style of those prompts.
"""

import torch

from dpdmd.method.randomness import generator

NUM_PROMPTS = 4096

# Subjects, and where each kind of them may be.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "people": (
        (
            "an old fisherman", "a young woman with red hair", "a man with a grey beard", "a girl in a yellow raincoat",
            "a boy with a wooden sword", "a dancer in mid-leap", "a baker with flour on his hands", "a street musician",
            "a nurse after a long shift", "a farmer", "a grandmother knitting", "a mountaineer", "a welder at work",
            "a potter at the wheel", "a violinist", "two friends laughing", "a father carrying his daughter",
            "a chess player deep in thought", "a diver with an old brass helmet", "a knight in worn armour",
            "an astronaut", "a librarian on a ladder", "a cyclist in the rain", "a woman reading a letter",
            "a crowd with umbrellas", "a family at dinner", "a sailor", "a gardener with a straw hat",
        ),
        (
            "at a market", "in a small kitchen", "on a train platform", "by the sea", "in a quiet library",
            "on a rooftop at night", "in a workshop full of tools", "under a street lamp", "in a field of wheat",
            "in a narrow alley", "at a desk", "in front of a plain wall", "on a wooden pier", "in a greenhouse",
        ),
    ),
    "animals": (
        (
            "a red fox", "a tabby cat", "a black dog with one white ear", "an owl", "a pair of swans", "a wild horse",
            "an elephant and her calf", "a hedgehog", "a tree frog", "a school of silver fish", "a humpback whale",
            "a bee on a thistle", "a snail", "a raven", "a lynx", "a flock of starlings", "an otter", "a brown bear",
            "a kingfisher", "a tortoise", "a goat on a rock", "a hare", "a jellyfish", "a peacock", "a white heron",
            "three kittens", "a cow looking into the camera", "a chameleon",
        ),
        (
            "in deep snow", "in a birch forest", "at the edge of a pond", "in tall grass", "on a mossy log",
            "on a rocky shore", "in the morning fog", "in a meadow full of poppies", "on a fence post",
            "under the roots of an old tree", "beside a waterfall", "on a dusty road", "in shallow water",
            "in the rain",
        ),
    ),
    "things": (
        (
            "a blue teapot", "a stack of old books", "a typewriter", "a pair of worn leather boots", "a telescope",
            "a bowl of lemons", "a loaf of bread", "a cup of coffee", "a cake with cherries", "a glass marble",
            "a pocket watch", "a bunch of keys", "a red umbrella", "a violin", "a model ship", "a basket of eggs",
            "a vase of tulips", "a candle", "a mechanical bird", "a plate of pasta", "a paper boat", "an hourglass",
            "a wooden chair", "a record player", "a bicycle", "a lantern", "a pair of glasses on an open book",
            "a bowl of noodle soup",
        ),
        (
            "on a windowsill", "on a wooden table", "on a marble counter", "on a pile of maps", "in an empty room",
            "on a linen cloth", "on a shelf between plants", "on wet sand", "on a stone step", "in an attic",
            "on a workbench", "beside an open window", "on a black background", "on a garden bench",
        ),
    ),
    "places": (
        (
            "a lighthouse", "a village of stone houses", "an abandoned factory", "a wooden bridge", "a narrow street",
            "a harbour with fishing boats", "a castle ruin", "a small railway station", "a library with tall windows",
            "a desert with dunes", "a mountain lake", "a vineyard", "a bamboo grove", "a coral reef", "a frozen river",
            "a spiral staircase", "a windmill", "a night market", "a glass skyscraper", "a thatched cottage",
            "a cave with a shaft of light", "a rice terrace", "a volcano", "a cobbled square with a fountain",
            "a swimming pool from above", "a space station", "a floating island", "a greenhouse overgrown with ivy",
        ),
        (
            "at low tide", "after the rain", "in late autumn", "covered in snow", "under a starry sky", "in spring",
            "before a thunderstorm", "in thick fog", "seen from a hill", "seen from the air", "with nobody around",
            "full of people", "between high cliffs", "reflected in still water",
        ),
    ),
}  # fmt: skip
STYLES = (
    "a photograph", "an oil painting", "a watercolour", "a pencil drawing", "an ink drawing", "a woodcut",
    "a linocut in two colours", "a charcoal sketch", "a pastel drawing", "a screen print", "a botanical illustration",
    "a children's book illustration", "a comic panel", "a pixel art scene", "a low-poly render", "a 3D render",
    "a claymation still", "a paper collage", "a stained glass window", "a mosaic", "an embroidery", "a fresco",
    "a black and white photograph", "a film still", "a macro photograph", "an instant photograph", "a travel poster",
    "a technical drawing", "a marble sculpture", "concept art",
)  # fmt: skip
LIGHT = (
    "soft morning light", "harsh noon sun", "golden evening light", "the blue hour", "candlelight", "moonlight",
    "neon light", "overcast sky", "light from a single window", "backlight with long shadows", "firelight",
    "dappled light through leaves", "studio lighting", "a dim red glow",
)  # fmt: skip
COMPOSITION = (
    "close-up", "wide shot", "seen from below", "seen from above", "centred and symmetrical", "shallow depth of field",
    "rule of thirds", "long exposure", "silhouette", "in profile", "framed by a doorway", "lots of empty space",
    "everything in focus", "slightly tilted",
)  # fmt: skip
MOOD = (
    "muted colours", "vivid colours", "a palette of greens and browns", "pale blue and orange", "high contrast",
    "fine detail", "rough texture", "a calm mood", "a playful mood", "a melancholy mood", "visible brush strokes",
    "a grainy finish", "clean lines", "a dreamlike atmosphere",
)  # fmt: skip
# From a few words to a long description; the parts are subject, place, style, light, composition and mood.
TEMPLATES = (
    "{subject}",
    "{subject} {place}",
    "{subject} {place}",
    "{style} of {subject}",
    "{style} of {subject} {place}",
    "{style} of {subject} {place}",
    "{style} of {subject} {place}, {light}",
    "{subject} {place}, {light}, {composition}",
    "{style} of {subject} {place}, {light}, {composition}",
    "{style} of {subject} {place}, {composition}, {mood}",
    "{style} of {subject} {place}. The scene has {light} and {mood}; {composition}.",
    "{subject} {place}, {style}, {light}, {composition}, {mood}",
)


def generic_prompts(num_prompts: int = NUM_PROMPTS) -> list[str]:
    """`num_prompts` different captions, short and long, in a fixed order."""
    rng = generator(0, "generic_prompts")

    def one_of(options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (), generator=rng))]

    prompts: dict[str, None] = {}
    while len(prompts) < num_prompts:
        subjects, places = KINDS[one_of(tuple(KINDS))]
        parts = {"subject": one_of(subjects), "place": one_of(places), "style": one_of(STYLES)}
        parts |= {"light": one_of(LIGHT), "composition": one_of(COMPOSITION), "mood": one_of(MOOD)}
        prompts[one_of(TEMPLATES).format(**parts)] = None
    return list(prompts)
