"""Our capture on the parity models gives the method's tokens, maps and IoU (../shared/parity/README.md)."""

import json

import numpy as np
import pytest
import torch

from components.llava_attention.model import load_llava
from components.mgm_attention.model import load_mgm
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.prompts import prompt_text
from free2ds_common.pictures import load_picture

TOLERANCE = 1e-6
CPU, FP32 = torch.device("cpu"), torch.float32
LAYOUTS = {"llava": load_llava, "llava_hf": load_llava, "mgm": load_mgm}


@pytest.fixture(scope="session")
def samples(shared):
    records = json.loads((shared / "parity/samples.json").read_text())
    return {record["unique_id"]: record for record in records if "image" in record}


@pytest.fixture(scope="session")
def answers(shared, samples):
    """Every layout's answers, computed once: two questions a picture in one, so that prefixes are shared."""
    found = {}
    for layout, load in LAYOUTS.items():
        model = load(shared / "parity/models" / layout, CPU, FP32)
        groups = []
        for number, record in samples.items():
            prompt = model.prompt(record["conversations"][0]["value"])
            pixels = model.preprocess(load_picture(str(shared / "parity/images"), record["image"]))
            groups.append(PictureGroup(pixels, (Question(number, prompt), Question(-number, prompt))))
        found[layout] = {answer.index: answer for answer in AnswerGenerator(model, 100, 16).generate(groups)}
    return found


def expected(shared, layout, number):
    return np.load(shared / "parity" / layout.removesuffix("_hf") / f"sample_{number:03d}.npz")


def test_prompts_and_tokens_equal(shared, samples):
    for layout, load in (("llava", load_llava), ("mgm", load_mgm)):
        model = load(shared / "parity/models" / layout, CPU, FP32)
        for number, record in samples.items():
            wanted = expected(shared, layout, number)
            question = record["conversations"][0]["value"]
            assert prompt_text(question, model.prompt_settings["system"]) == str(wanted["prompt"])
            prompt = model.prompt(question)
            assert [*prompt.before, -200, *prompt.after] == wanted["input_ids"].tolist()
            assert [len(prompt.before), len(prompt.before) + model.num_vision_tokens] == wanted["vision_span"].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generated_tokens_equal(shared, samples, answers, layout):
    for number in samples:
        wanted = expected(shared, layout, number)["generated"].tolist()[1:]
        assert list(answers[layout][number].tokens) == wanted
        assert list(answers[layout][-number].tokens) == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_equal(shared, samples, answers, layout):
    for number in samples:
        wanted = expected(shared, layout, number)
        for answer in (answers[layout][number], answers[layout][-number]):
            if "aggregated" not in wanted:
                assert (answer.map, answer.outcome) == (None, "eos_only")
            else:
                np.testing.assert_allclose(answer.map.numpy(), wanted["aggregated"], rtol=0, atol=TOLERANCE)


def test_both_llava_layouts_give_the_same_bits(samples, answers):
    for number in samples:
        one, other = answers["llava"][number], answers["llava_hf"][number]
        assert one.tokens == other.tokens
        assert (one.map is None) == (other.map is None)
        assert one.map is None or torch.equal(one.map, other.map)


def test_preprocessing_equals(shared, samples):
    model = load_llava(shared / "parity/models/llava", CPU, FP32)
    for number in (1, 2):
        picture = load_picture(str(shared / "parity/images"), samples[number]["image"])
        wanted = expected(shared, "llava", number)["pixel_values"]
        np.testing.assert_array_equal(model.preprocess(picture)["pixel_values"].numpy(), wanted)
