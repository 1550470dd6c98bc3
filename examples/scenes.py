"""Drawn scenes and LLaVA-style questions about them: seeded, Pillow only."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 139, 87),
    "blue": (38, 84, 196),
    "yellow": (240, 200, 20),
    "purple": (128, 60, 160),
    "orange": (244, 140, 20),
}
SHAPES = ("circle", "square", "triangle")
SIZES = ((336, 336), (480, 320), (320, 480), (640, 360), (200, 150), (96, 400))
WORDS = ("EXIT", "SALE", "OPEN", "CAFE", "STOP", "MILK", "TAXI", "BOOK")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May")
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
TEXT_ONLY_SHARE = 0.1
TASKS = (
    ("Write a haiku about {topic}.", "Quiet light returns."),
    ("Explain {topic} to a child in two sentences.", "It is simpler than it sounds."),
    ("Give me three facts about {topic}.", "1. It is old. 2. It is useful. 3. It is everywhere."),
    ("Translate the word for {topic} into French.", "Voici."),
    ("Why do people care about {topic}?", "Because it touches everyday life."),
)
TOPICS = ("the sea", "recycling", "chess", "gravity", "bread", "bicycles", "photosynthesis", "jazz")


@dataclass(frozen=True)
class Scene:
    """A picture and what can be asked about it.

    Attributes:
        picture: RGB, RGBA or grayscale.
        source: What kind of picture: "shapes", "charts" or "signs".
        pairs: Questions and answers, without placeholder.
    """

    picture: Image.Image
    source: str
    pairs: list[tuple[str, str]]


def draw_shapes(rng: random.Random) -> Scene:
    """Coloured shapes on a plain ground."""
    width, height = rng.choice(SIZES)
    picture = Image.new("RGB", (width, height), rng.choice([(245, 245, 240), (225, 235, 245), (30, 30, 36)]))
    pen = ImageDraw.Draw(picture)
    things = []
    for _ in range(rng.randint(2, 6)):
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        size = rng.randint(min(width, height) // 8, min(width, height) // 3)
        left, top = rng.randint(0, width - size), rng.randint(0, height - size)
        box = (left, top, left + size, top + size)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=COLOURS[colour])
        things.append((shape, colour, left + size / 2))
    shape, colour, centre = rng.choice(things)
    count = sum(thing[0] == shape for thing in things)
    options = [*rng.sample([name for name in COLOURS if name != colour], 3), colour]
    rng.shuffle(options)
    listed = "".join(f"\n{letter}. {name}" for letter, name in zip("ABCD", options, strict=True))
    return Scene(
        picture,
        "shapes",
        [
            (f"How many {shape}s are there?{SHORT}", str(count)),
            (f"Is there a {colour} {shape} in the picture?", "Yes"),
            (f"What color is one of the {shape}s?{listed}{LETTER}", "ABCD"[options.index(colour)]),
            (f"Is the {colour} {shape} on the left or on the right?", "left" if centre < width / 2 else "right"),
            ("Describe the image briefly.", f"{len(things)} shapes on a plain background."),
            (
                f"What is the largest number of {shape}s of one color, and where in the picture are they placed?",
                str(count),
            ),
        ],
    )


def draw_chart(rng: random.Random) -> Scene:
    """A bar chart of five months."""
    values = [rng.randint(5, 100) for _ in MONTHS]
    colour = rng.choice(list(COLOURS))
    picture = Image.new("RGB", (500, 380), "white")
    pen = ImageDraw.Draw(picture)
    pen.line([(40, 20), (40, 340), (480, 340)], fill="black", width=2)
    for number, (month, value) in enumerate(zip(MONTHS, values, strict=True)):
        left = 60 + 84 * number
        pen.rectangle((left, 340 - 3 * value, left + 50, 340), fill=COLOURS[colour])
        pen.text((left + 12, 348), month, fill="black")
        pen.text((left + 14, 326 - 3 * value), str(value), fill="black")
    month = rng.choice(MONTHS)
    return Scene(
        picture,
        "charts",
        [
            (f"What is the value for {month}?{SHORT}", str(values[MONTHS.index(month)])),
            ("Which month has the highest bar?", MONTHS[values.index(max(values))]),
            (f"What is the sum of all bars, and is it above {rng.randint(150, 350)}?", str(sum(values))),
            (f"What color are the bars?{SHORT}", colour),
            ("Summarise the chart in one sentence.", f"Values range from {min(values)} to {max(values)}."),
        ],
    )


def draw_sign(rng: random.Random) -> Scene:
    """A sign with a word; some gray, some with transparency."""
    word, colour = rng.choice(WORDS), rng.choice(list(COLOURS))
    picture = Image.new("RGBA", (360, 240), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((20, 40, 340, 200), radius=24, fill=(*COLOURS[colour], 255), outline="black", width=4)
    pen.text((90, 80), word, fill="white", font_size=64)
    if rng.random() < 0.4:
        picture = picture.convert("L")
    return Scene(
        picture,
        "signs",
        [
            (f"What does the sign say?{SHORT}", word),
            (f"What is written in the image?\nReference OCR token: {word}", word),
            (f"Is the word on the sign {rng.choice(WORDS)}?", "Yes"),
            ("Where could such a sign hang?", "Above a door."),
        ],
    )


DRAWINGS = (draw_shapes, draw_shapes, draw_chart, draw_sign)


def sample_texts() -> list[str]:
    """What the tokenizers learn from: questions and answers, the same whatever the data set's seed is."""
    rng = random.Random(0)
    pairs = [pair for _ in range(100) for pair in rng.choice(DRAWINGS)(rng).pairs]
    pairs += [(task.format(topic=topic), answer) for task, answer in TASKS for topic in TOPICS]
    return [text for pair in pairs for text in pair]


def make_dataset(folder: Path, num_records: int, seed: int) -> list[dict[str, Any]]:
    """Draw the pictures and write `dataset.json`.

    Args:
        folder: Gets `dataset.json` and `images/`.
        num_records: Records in all; about a tenth is text-only.
        seed: The same seed gives the same bytes.

    Returns:
        The records, in LLaVA's format.
    """
    rng = random.Random(seed)
    num_text_only = round(num_records * TEXT_ONLY_SHARE)
    records: list[dict[str, Any]] = []
    number = 0
    while len(records) < num_records - num_text_only:
        scene = rng.choice(DRAWINGS)(rng)
        suffix = "png" if scene.picture.mode == "RGBA" else "jpg"
        image = f"{scene.source}/{number:04d}.{suffix}"
        number += 1
        (folder / "images" / scene.source).mkdir(parents=True, exist_ok=True)
        scene.picture.save(folder / "images" / image)
        questions = rng.sample(scene.pairs, k=len(scene.pairs))
        wanted = min(rng.randint(1, 4), num_records - num_text_only - len(records))
        for part in range(wanted):
            # The last record of a picture takes what is left, so some records have several turns.
            chosen = questions[part : part + 1] if part < wanted - 1 else questions[part : part + rng.randint(1, 3)]
            records.append({"image": image, "source": scene.source, "conversations": _turns(chosen, rng)})
    for _ in range(num_text_only):
        task, answer = rng.choice(TASKS)
        question = task.format(topic=rng.choice(TOPICS))
        records.append({"source": "text", "conversations": [_turn("human", question), _turn("gpt", answer)]})
    rng.shuffle(records)
    records = [{"id": f"example-{place:05d}", **record} for place, record in enumerate(records)]
    (folder / "dataset.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return records


def _turn(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


def _turns(pairs: list[tuple[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """The placeholder stands before the first question, or sometimes after it."""
    turns = []
    for number, (question, answer) in enumerate(pairs):
        if number == 0:
            question = f"{question}\n<image>" if rng.random() < 0.15 else f"<image>\n{question}"
        turns += [_turn("human", question), _turn("gpt", answer)]
    return turns
