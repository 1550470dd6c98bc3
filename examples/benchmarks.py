"""Small benchmarks about scenes that the example data set does not show: drawn, seeded, Pillow only."""

import json
import random
from pathlib import Path

from examples.scenes import COLOURS, SHAPES, SHORT, draw_chart, draw_shapes

NUM_QUESTIONS = 24
# Not the data set's own seeds, so that no picture is in both.
_SEED = 1_000_003


def make_benchmarks(folder: Path) -> list[Path]:
    """Write two benchmark folders: colours of bars (metric gqa), and whether a shape is there (metric pope).

    Args:
        folder: Gets a folder for each.

    Returns:
        The folders.
    """
    rng = random.Random(_SEED)
    colours, shapes = [], []
    for number in range(NUM_QUESTIONS):
        scene = draw_chart(rng)
        answer = next(answer for question, answer in scene.pairs if question.startswith("What color"))
        colours.append((scene.picture, f"What color are the bars?{SHORT}", answer))
        scene = draw_shapes(rng)
        colour, shape = _named_in(scene.pairs[1][0]) if number % 2 == 0 else ("pink", rng.choice(SHAPES))
        question = f"Is there a {colour} {shape} in the picture?{SHORT}"
        shapes.append((scene.picture, question, "no" if colour == "pink" else "yes"))
    written = []
    for name, metric, asked in (("colours", "gqa", colours), ("shapes", "pope", shapes)):
        (folder / name / "images").mkdir(parents=True)
        records = []
        for number, (picture, question, answer) in enumerate(asked):
            image = f"{number:04d}.png"
            picture.save(folder / name / "images" / image)
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            records.append({"id": f"{name}-{number:04d}", "image": image, "conversations": turns})
        (folder / name / "questions.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
        described = {
            "schema": "benchmark/1",
            "name": name,
            "metric": metric,
            "questions": "questions.json",
            "source": "examples.make",
            "revision": "1",
            "max_new_tokens": 4,
        }
        (folder / name / "benchmark.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        written.append(folder / name)
    return written


def _named_in(question: str) -> tuple[str, str]:
    """The colour and the shape that a question names."""
    words = question.split()
    return next(word for word in words if word in COLOURS), next(word for word in words if word in SHAPES)
