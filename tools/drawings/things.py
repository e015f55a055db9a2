"""Which things the world has: single objects in plain words, by group, that at least six hands drew.

An entry is the name of an icon, or ICON=NAME where the name differs; a hyphen stands for a blank. A name that begins
with "some" takes no article.
"""

THINGS = {
    "animal": "frog chicken duck eagle owl penguin rooster turkey ant butterfly honeybee=bee lady-beetle=ladybird "
    "scorpion snail spider bat bear camel cat cow deer dog elephant gorilla horse koala monkey mouse "
    "pig rabbit tiger crab dolphin fish octopus shark squid whale crocodile lizard snake turtle",
    "fruit": "banana cherries=some-cherries grapes=some-grapes lemon melon peach pear pineapple red-apple "
    "strawberry tangerine tomato watermelon",
    "vegetable": "avocado carrot chestnut cucumber eggplant hot-pepper potato ear-of-corn",
    "dish": "burrito croissant hamburger hot-dog pizza taco popcorn=some-popcorn french-fries=some-french-fries "
    "sushi=some-sushi doughnut cookie birthday-cake custard lollipop candy soft-ice-cream honey-pot",
    "drink": "beer-mug wine-glass cocktail-glass tropical-drink",
    "vehicle": "ambulance automobile=car bicycle bus fire-engine helicopter motorcycle police-car rocket sailboat "
    "ship taxi tractor train airplane delivery-truck canoe motor-scooter=scooter tram-car=tram",
    "plant": "cactus evergreen-tree palm-tree mushroom maple-leaf four-leaf-clover rose tulip sunflower hibiscus "
    "cherry-blossom seedling",
    "garment": "crown dress jeans=pair-of-jeans kimono necktie high-heeled-shoe mans-shoe=brown-shoe top-hat "
    "t-shirt graduation-cap",
    "instrument": "guitar saxophone trumpet violin bell",
    "ball": "soccer-ball basketball american-football volleyball tennis=tennis-ball baseball",
    "tool": "hammer wrench pick=pickaxe scissors=pair-of-scissors paperclip pencil key dagger gear",
    "building": "house church castle factory bank hospital tent",
    "machine": "camera television alarm-clock floppy-disk battery light-bulb microscope",
}
# Icons under a thing's name that show another thing: this turkey is the flag of the country.
NOT_THESE = {("turkey", "streamline-emojis")}
