"""What training asks for, and in which words.

A `Request` says what to draw; `phrase` puts it into one of many wordings, so that the text encoder meets
synonyms, articles, word orders and words without meaning. Words the model does not know must leave a picture
as it is.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.mini.scenes import COLOURS, SHAPES, TIMES, Scene
from training.mini.styles import ALL_STYLES, MOODS, STYLES


@dataclass(frozen=True)
class Request:
    """One thing to learn: a scene from noise (video mode) or, without `scene`, a given picture repainted."""

    scene: Scene | None = None
    style: str | None = None
    mood: str | None = None


KIND_WORDS: dict[str, tuple[str, ...]] = {
    "mountains": (
        "mountains",
        "mountain landscape",
        "the alps",
        "a mountain range",
        "rocky peaks",
        "snowy peaks",
        "hiking trail",
    ),
    "sea": ("the sea", "the ocean", "sea", "ocean waves", "open water", "waves", "seascape"),
    "beach": ("a beach", "beach", "sandy beach", "the seaside", "a tropical beach", "the coast", "island"),
    "lake": ("a lake", "lake", "a mountain lake", "a calm lake", "reflections in a lake", "a fjord"),
    "forest": ("a forest", "forest", "pine trees", "woods", "trees", "a pine forest", "jungle"),
    "desert": ("a desert", "desert", "sand dunes", "the sahara", "dunes"),
    "city": (
        "a city",
        "city skyline",
        "skyscrapers",
        "downtown",
        "buildings",
        "new york",
        "tokyo",
        "street",
        "town",
    ),
    "meadow": (
        "a meadow",
        "green hills",
        "a field",
        "meadow",
        "countryside",
        "grass",
        "landscape",
        "farm",
    ),
    "space": (
        "space",
        "a planet",
        "outer space",
        "galaxy",
        "nebula",
        "a planet and stars",
        "stars",
        "universe",
        "alien planet",
    ),
}
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("", "", "", "by day", "on a sunny day", "in daylight", "at noon"),
    "sunset": ("at sunset", "sunset", "in the evening", "at dusk", "golden hour", "sundown"),
    "night": ("at night", "night", "by night", "midnight", "dark night", "in the moonlight"),
    "dawn": ("at dawn", "dawn", "sunrise", "at sunrise", "in the morning", "early morning"),
}
WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("", "", "", "clear sky"),
    "clouds": ("clouds", "with clouds", "cloudy", "under a cloudy sky", "white clouds"),
    "rain": ("rain", "in the rain", "rainy", "rainy weather", "storm", "heavy rain"),
    "snow": ("snow", "in the snow", "snowing", "snowfall", "snowstorm", "with snow"),
    "fog": ("fog", "in the fog", "foggy", "misty", "mist", "haze"),
}
SEASON_WORDS: dict[str, tuple[str, ...]] = {
    "summer": ("", "", "", "in summer", "summer"),
    "autumn": ("in autumn", "autumn", "fall colors", "autumn colors"),
    "winter": ("in winter", "winter", "frozen winter"),
    "spring": ("in spring", "spring", "spring flowers"),
}
LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "none": ("",),
    "sun": ("with the sun", "sun", "sunshine", "bright sun", "sunny"),
    "moon": ("with the moon", "moon", "full moon", "moonlight"),
}
FLOWER_WORDS = ("flowers", "a garden", "garden", "a meadow with flowers", "green hills, flowers")
"""A meadow in spring."""
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc", "dot"),
    "square": ("square", "box", "cube"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five pointed star"),
    "heart": ("heart", "love heart"),
    "ring": ("ring", "donut", "hoop"),
}
SUBJECTS = (
    "a man", "a woman", "a person", "a face", "a portrait", "portrait of a man", "portrait of a woman",
    "a girl", "a boy", "my face", "me", "a selfie", "a child", "people", "a friend", "a cat", "a dog",
    "a bird", "a horse", "a house", "a car", "a robot", "a room", "my desk", "a cup of coffee", "food",
    "a chair", "a table", "a street", "a tree", "mountains", "the sea", "a city", "flowers", "a forest",
    "a landscape", "a photo", "a picture", "an image", "this scene", "everything", "a king", "a queen",
    "an astronaut", "a wizard", "a knight", "a superhero", "an old man", "a young woman", "the world",
    "a man with a hat", "a woman with glasses", "a man in a blue shirt", "a woman in a red dress",
    "a guitar", "a phone", "a computer", "a window", "a lamp", "a book", "hands", "smile", "eyes",
    "long hair", "a beard", "a zombie", "a tiger",
)  # fmt: skip
EXTRAS = (
    "highly detailed", "beautiful", "masterpiece", "best quality", "4k", "8k", "hd", "high resolution",
    "trending on artstation", "sharp focus", "award winning", "detailed", "intricate", "realistic",
    "photo", "cinematic", "professional", "amazing", "very nice", "please", "by a famous artist",
    "artwork", "art", "illustration", "simple", "modern", "colorful", "elegant", "unreal engine",
    "octane render", "high quality", "stunning", "epic", "cool", "style",
)  # fmt: skip
FILLERS = (
    "a", "an", "the", "of", "in", "with", "and", "on", "at", "make", "it", "look", "like", "turn", "into",
    "as", "is", "this", "that", "my", "to", "by", "from", "for", "style", "drawn", "painted", "made",
    "person", "background", "one", "two", "big", "small", "old", "new", "very", "some", "more", "happy",
    "sad", "dark", "bright", "light", "color", "hello", "test", "nothing", "normal", "original", "keep",
)  # fmt: skip
STYLE_TEMPLATES = (
    "{s}", "{s}", "{s}", "a {s}", "{s} style", "{s} of {x}", "a {s} of {x}", "{x}, {s}", "{x} as a {s}",
    "{x} in {s} style", "in the style of {s}", "{x} in the style of a {s}", "make it a {s}",
    "turn it into {s}", "{e} {s} of {x}", "{s}, {e}", "{s} of {x}, {e}, {e}", "{x}, {s}, {e}", "{e}, {s}",
    "make me look like {s}", "drawn as {s}",
)  # fmt: skip
BOTH_TEMPLATES = (
    "{s} {m}", "{m} {s}", "{s}, {m}", "{m}, {s}", "{s} of {x}, {m}", "a {s} of {x} {m}", "{x}, {m}, {s}",
    "a {s}, {m}", "{m} in the style of {s}", "{e} {s}, {m}",
)  # fmt: skip
PLAIN_TEMPLATES = (
    "",
    "",
    "",
    "{x}",
    "{x}",
    "{e}",
    "{x}, {e}",
    "{f} {f} {f}",
    "{j}",
    "{j} {f} {x}",
    "{x} {f} {j}",
)
SLOW_STYLES = ("pencil", "charcoal", "oil", "cartoon", "comic", "mosaic", "pixel_art", "stained_glass")
SLOW_KINDS = ("mountains", "lake", "forest", "city")
SEASONLESS = ("sea", "beach", "desert", "city")
"""Kinds that look alike in spring, summer and autumn."""
DEFAULT_SCENE = Scene("meadow", weather="clouds", light="sun")


def _junk(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 8)))


def _fill(template: str, rng: random.Random, style: str = "", mood: str = "") -> str:
    text = template.replace("{s}", style).replace("{m}", mood)
    for mark, choices in (("{x}", SUBJECTS), ("{e}", EXTRAS), ("{f}", FILLERS)):
        while mark in text:
            text = text.replace(mark, rng.choice(choices), 1)
    while "{j}" in text:
        text = text.replace("{j}", _junk(rng), 1)
    return text


def _scene_words(scene: Scene, rng: random.Random) -> str:
    if scene.kind in SHAPES:
        shape = f"{scene.colour} {rng.choice(SHAPE_WORDS[scene.kind])}"
        if rng.random() < 0.6:
            shape = "a " + shape
        if scene.background is not None:
            shape += rng.choice((" on a {b} background", " on {b}", ", {b} background")).replace(
                "{b}", scene.background
            )
        return shape
    kind = rng.choice(KIND_WORDS[scene.kind])
    season = rng.choice(SEASON_WORDS[scene.season])
    if scene.kind == "meadow" and scene.season == "spring" and rng.random() < 0.7:
        kind, season = rng.choice(FLOWER_WORDS), rng.choice((season, ""))
    rest = [
        rng.choice(TIME_WORDS[scene.time]),
        rng.choice(WEATHER_WORDS[scene.weather]),
        season,
        rng.choice(LIGHT_WORDS[scene.light]),
    ]
    rest = [part for part in rest if part]
    if scene == Scene(scene.kind) and rng.random() < 0.7:
        rest = []
    rng.shuffle(rest)
    if rng.random() < 0.2 and rest:
        return ", ".join([*rest, kind])
    joint = rng.choice((" ", ", ", " "))
    return joint.join([kind, *rest])


def phrase(request: Request, rng: random.Random) -> str:
    """One of the many wordings of a request."""
    style = rng.choice(STYLES[request.style].words) if request.style else ""
    mood = rng.choice(MOODS[request.mood].words) if request.mood else ""
    if request.scene is None:
        if style and mood:
            return _fill(rng.choice(BOTH_TEMPLATES), rng, style, mood)
        if style or mood:
            return _fill(rng.choice(STYLE_TEMPLATES), rng, style or mood)
        return _fill(rng.choice(PLAIN_TEMPLATES), rng)
    # A prompt without a scene still has to paint something: the default landscape.
    unnamed = request.scene == DEFAULT_SCENE and rng.random() < 0.7
    words = "" if unnamed else _scene_words(request.scene, rng)
    if rng.random() < 0.2:
        words = f"{words}, {rng.choice(EXTRAS)}" if words else rng.choice(EXTRAS)
    elif rng.random() < 0.15 and words:
        words = rng.choice(("a photo of ", "a picture of ", "view of ", "beautiful ")) + words
    drawn = " ".join(part for part in (mood, style) if part)
    if not drawn:
        return words
    if not words:
        return drawn
    article = "an" if drawn[0] in "aeiou" else "a"
    return rng.choice(
        (f"{drawn} of {words}", f"{words}, {drawn}", f"{drawn} {words}", f"{article} {drawn} of {words}")
    )


def _any_style(rng: random.Random) -> str:
    """A style, those that are learned slowly twice as often."""
    return rng.choice([*STYLES, *SLOW_STYLES])


def picture_request(rng: random.Random) -> Request:
    """A request for image mode: a style, a mood, both, or nothing to do."""
    kind = rng.random()
    if kind < 0.58:
        return Request(style=_any_style(rng))
    if kind < 0.78:
        return Request(mood=rng.choice(list(MOODS)))
    if kind < 0.92:
        return Request(style=_any_style(rng), mood=rng.choice(list(MOODS)))
    return Request()


def recoloured(request: Request, rng: random.Random) -> Request:
    """The same shape in a colour, and mostly on a background, of chance."""
    assert request.scene is not None
    colour = rng.choice(list(COLOURS))
    others = [name for name in COLOURS if name != colour]
    background = rng.choice(others) if rng.random() < 0.65 else None
    return replace(request, scene=replace(request.scene, colour=colour, background=background))


def _one_thing(kind: str, rng: random.Random) -> dict[str, str]:
    """A time, a weather or a season that a scene can have beside its kind."""
    seasons = ("winter",) if kind in SEASONLESS else ("autumn", "winter", "spring")
    choices = {
        "time": ("sunset", "night", "dawn"),
        "weather": ("clouds", "rain", "snow", "fog"),
        "season": seasons,
    }
    name = rng.choice(list(choices))
    return {name: rng.choice(choices[name])}


def scene_request(rng: random.Random) -> Request:
    """A request for video mode: a landscape or a shape, often in a style."""
    style = _any_style(rng) if rng.random() < 0.4 else None
    mood = rng.choice(("vintage", "noir", "dream", "underwater")) if rng.random() < 0.04 else None
    draw = rng.random()
    if draw < 0.05:
        return Request(DEFAULT_SCENE, style, mood)
    if draw < 0.28:
        request = Request(Scene(rng.choice(SHAPES)), style if rng.random() < 0.4 else None)
        return recoloured(request, rng)
    if rng.random() < 0.06:
        return Request(Scene("meadow", season="spring"), style, mood)  # flowers
    kind = rng.choice([*KIND_WORDS, *SLOW_KINDS])
    if kind == "space" or rng.random() < (0.2 if style is None else 0.4):  # what people type first
        return Request(Scene(kind), style, mood)
    if rng.random() < 0.25:  # and then one thing more, which may be a word of image mode, too: "in autumn"
        return Request(replace(Scene(kind), **_one_thing(kind, rng)), style, mood)
    if style is not None and rng.random() < 0.5:  # "pixel art city at night"
        return Request(Scene(kind, rng.choice(TIMES)), style)
    time = rng.choices(("day", "sunset", "night", "dawn"), (0.42, 0.24, 0.22, 0.12))[0]
    weather = rng.choices(("clear", "clouds", "rain", "snow", "fog"), (0.42, 0.24, 0.16, 0.09, 0.09))[0]
    season = rng.choices(("summer", "autumn", "winter", "spring"), (0.6, 0.14, 0.14, 0.12))[0]
    if kind in SEASONLESS and season != "winter":
        season = "summer"
    light = "none"
    if weather in ("clear", "clouds") and rng.random() < 0.5:
        light = "moon" if time == "night" else "sun"
    return Request(Scene(kind, time, weather, season, light), style, mood)


def words() -> Iterator[str]:
    """Every word that training can say, with repetitions: the corpus of the tokenizer."""
    tables = (KIND_WORDS, TIME_WORDS, WEATHER_WORDS, SEASON_WORDS, LIGHT_WORDS, SHAPE_WORDS)
    phrases = [text for table in tables for choices in table.values() for text in choices]
    phrases += [text for style in ALL_STYLES.values() for text in style.words]
    phrases += [*SUBJECTS, *EXTRAS, *FILLERS, *COLOURS, *SHAPES]
    phrases += [*STYLE_TEMPLATES, *BOTH_TEMPLATES, "on a background", "a photo of", "a picture of", "view of"]
    for text in phrases:
        for word in text.lower().replace(",", " ").replace("-", " ").split():
            if "{" not in word:
                yield word
