"""release and verify: a selection, its control and a card as one folder."""

import hashlib
import json

import pyarrow as pa
import pytest
import yaml

import pipeline
from free2ds_common.launch.release import card_sha256


def record(number, **fields):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    return {"id": f"{number:06d}", "image": f"coco/{number}.jpg", "conversations": turns, **fields, "unique_id": number}


def run_folder(folder, selected, random):
    """What a run leaves, as much of it as a release reads."""
    (folder / "scores").mkdir(parents=True)
    outputs = {}
    for name, records in (("selected", selected), ("random", random)):
        text = json.dumps(records)
        (folder / f"{name}.json").write_text(text)
        outputs[name] = hashlib.sha256(text.encode()).hexdigest()
    summary = {
        "counts": {"read": 9, "written": len(selected), "dropped": 9 - len(selected), "rejected": 0},
        "pool": 9,
        "ingest": {"dataset_uri": "gs://b/d.json", "dataset_sha256": "d" * 64, "counts": {"read": 10, "rejected": 1}},
        "models": {
            "llava": {"model": "org/l", "revision": "1a", "model_fingerprint": "sha256 9"},
            "mgm": {},
            "text": {},
        },
        "parameters": {"ratio": 0.2, "stratify": ""},
        "code_version": "0.1.0",
        "run": {"started": "2026-11-27T10:00:00+00:00"},
        "lineage": {"image": "r/free2ds:1", "outputs": outputs, "made_from": {}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def released(tmp_path):
    """A function that releases two lists and returns the folder."""

    def release(selected, random):
        run = run_folder(tmp_path / "out", selected, random)
        assert pipeline.main(["release", str(run), "--output-dir", str(tmp_path / "release")]) == 0
        return tmp_path / "release"

    return release


def card_of(folder):
    return json.loads((folder / "card.json").read_text())


class TestRelease:
    def test_records_are_as_the_run_wrote_them(self, released):
        folder = released([record(2), record(3)], [record(3), record(4)])
        assert json.loads((folder / "selected.json").read_text()) == [record(2), record(3)]
        assert json.loads((folder / "random.json").read_text()) == [record(3), record(4)]

    def test_the_card_says_where_it_comes_from(self, released):
        card = card_of(released([record(2), record(3)], [record(3), record(4)]))
        assert card["dataset"] == {"uri": "gs://b/d.json", "sha256": "d" * 64}
        assert card["models"]["llava"]["model_fingerprint"] == "sha256 9"
        assert card["versions"] == {"free2ds": "0.1.0", "image": "r/free2ds:1"}
        assert card["parameters"] == {"ratio": 0.2, "stratify": ""}

    def test_the_card_counts(self, released):
        counts = card_of(released([record(2), record(3)], [record(3), record(4)]))["counts"]
        assert (counts["selected"], counts["random"], counts["in_both"], counts["pool"]) == (2, 2, 1, 9)
        assert counts["data_set"] == {"read": 10, "rejected": 1}

    def test_the_selections_checksum_is_of_its_numbers(self, released):
        card = card_of(released([record(2), record(3)], [record(4)]))
        assert card["selection_sha256"]["selected"] == hashlib.sha256(b"2\n3\n").hexdigest()

    def test_the_page_tells_hugging_face_of_the_files(self, released):
        page = (released([record(2)], [record(4)]) / "README.md").read_text()
        head = yaml.safe_load(page.split("---\n")[1])
        assert head["configs"][0]["data_files"] == [
            {"split": "selected", "path": "selected.json"},
            {"split": "random", "path": "random.json"},
        ]

    def test_the_page_names_model_and_data_set(self, released):
        page = (released([record(2)], [record(4)]) / "README.md").read_text()
        assert "| llava: model fingerprint | `sha256 9` |" in page
        assert "1 of 9 usable records" in page

    def test_values_of_several_types_become_texts(self, released, capsys):
        folder = released([record(2, id=7), record(3)], [record(4, score=1), record(5, score=[1.5])])
        selected, random = (json.loads((folder / f"{name}.json").read_text()) for name in ("selected", "random"))
        assert [one["id"] for one in selected] == ["7", "000003"]
        assert [one["score"] for one in random] == ["1", "[1.5]"]
        assert "warning: values of id, score had several types" in capsys.readouterr().out
        assert "Values of `id`, `score` had several types" in (folder / "README.md").read_text()

    def test_a_turns_values_of_several_types_become_texts(self, released):
        odd = record(2)
        odd["conversations"][0]["n"], odd["conversations"][1]["n"] = 1, "b"
        folder = released([odd], [record(4)])
        assert [one["n"] for one in json.loads((folder / "selected.json").read_text())[0]["conversations"]] == [
            "1",
            "b",
        ]

    def test_chats_become_what_llava_reads(self, released):
        chat = {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
            "images": ["a.jpg"],
            "unique_id": 2,
        }
        folder = released([chat], [record(4)])
        assert json.loads((folder / "selected.json").read_text()) == [
            {
                "unique_id": 2,
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
                "image": "a.jpg",
            }
        ]
        assert card_of(folder)["converted"] == 1

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_no_image_is_no_key(self, released, nothing):
        """LLaVA's trainer opens whatever stands in it."""
        folder = released([record(2, image=nothing)], [record(4)])
        assert "image" not in json.loads((folder / "selected.json").read_text())[0]

    def test_tables_can_hold_both_files(self, released):
        folder = released([record(2, id=7), record(3, more={"a": 1})], [record(4), record(5, image=None)])
        records = [one for name in ("selected", "random") for one in json.loads((folder / f"{name}.json").read_text())]
        kinds = {name: pa.array([one.get(name) for one in records]).type for name in records[0]}
        assert (kinds["id"], kinds["unique_id"], kinds["image"]) == (pa.string(), pa.int64(), pa.string())

    @pytest.mark.parametrize(
        ("speakers", "refused"),
        [
            (["human", "gpt"], 0),
            (["gpt", "human", "gpt"], 0),
            (["human", "human"], 1),
            (["system", "human", "gpt"], 1),
            (["gpt", "gpt", "human"], 1),
        ],
    )
    def test_turns_that_llavas_trainer_refuses_are_counted(self, released, speakers, refused):
        turns = [{"from": speaker, "value": "x"} for speaker in speakers]
        folder = released([record(2, conversations=turns)], [record(4)])
        assert card_of(folder)["counts"]["not_for_llava"] == refused

    def test_a_changed_selection_is_refused(self, tmp_path, capsys):
        run = run_folder(tmp_path / "out", [record(2)], [record(4)])
        (run / "selected.json").write_text("[]")
        assert pipeline.main(["release", str(run), "--output-dir", str(tmp_path / "release")]) == 2
        assert "selected.json: is not the file that this run wrote" in capsys.readouterr().err
        assert not (tmp_path / "release").exists()

    def test_without_a_control_it_is_refused(self, tmp_path, capsys):
        run = run_folder(tmp_path / "out", [record(2)], [record(4)])
        (run / "random.json").unlink()
        assert pipeline.main(["release", str(run), "--output-dir", str(tmp_path / "release")]) == 2
        assert "has no random.json, which a release holds" in capsys.readouterr().err

    def test_a_folder_in_use_is_refused(self, tmp_path, capsys):
        run = run_folder(tmp_path / "out", [record(2)], [record(4)])
        assert pipeline.main(["release", str(run), "--output-dir", str(run)]) == 2
        assert "is there already and not empty" in capsys.readouterr().err

    def test_a_folder_below_a_file_is_refused(self, tmp_path, capsys):
        run = run_folder(tmp_path / "out", [record(2)], [record(4)])
        assert pipeline.main(["release", str(run), "--output-dir", str(run / "summary.json/x")]) == 2
        assert "cannot be written (" in capsys.readouterr().err


class TestVerify:
    @pytest.fixture
    def folder(self, released):
        return released([record(2), record(3)], [record(3), record(4)])

    def reseal(self, folder, change):
        """Change a card and give it the checksums that then belong to it."""
        card = card_of(folder)
        for name in card["files"]:
            card["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        change(card)
        card["sha256"] = card_sha256(card)
        (folder / "card.json").write_text(json.dumps(card))

    def refusal(self, folder, capsys):
        capsys.readouterr()
        assert pipeline.main(["verify", str(folder)]) == 2
        return capsys.readouterr().err

    def test_a_whole_one(self, folder, capsys):
        capsys.readouterr()
        assert pipeline.main(["verify", str(folder)]) == 0
        assert capsys.readouterr().out.startswith(f"{folder}: whole; 2 selected and 2 random records of 9, selection ")

    def test_no_release(self, tmp_path, capsys):
        assert "card.json: is not there. Give the folder" in self.refusal(tmp_path, capsys)

    @pytest.mark.parametrize("content", ["[]", "{", '{"schema": "release/2"}'])
    def test_another_card(self, folder, capsys, content):
        (folder / "card.json").write_text(content)
        assert "is no card of a release (release/1)" in self.refusal(folder, capsys)

    def test_a_changed_card(self, folder, capsys):
        (folder / "card.json").write_text((folder / "card.json").read_text().replace("gs://b", "gs://c"))
        assert "card.json: was changed since the release was made" in self.refusal(folder, capsys)

    @pytest.mark.parametrize("name", ["selected.json", "random.json", "README.md"])
    def test_a_changed_file(self, folder, capsys, name):
        (folder / name).write_text((folder / name).read_text() + "\n")
        assert f"{name}: was changed since the release was made" in self.refusal(folder, capsys)

    def test_a_missing_file(self, folder, capsys):
        (folder / "random.json").unlink()
        assert "random.json: is not there, though card.json names it" in self.refusal(folder, capsys)

    def test_other_counts(self, folder, capsys):
        self.reseal(folder, lambda card: card["counts"].update(selected=3))
        assert "selected.json: has 2 records, card.json says 3" in self.refusal(folder, capsys)

    def test_other_records(self, folder, capsys):
        (folder / "selected.json").write_text(json.dumps([record(2), record(5)]))
        self.reseal(folder, lambda card: None)
        assert "selected.json: holds other records than card.json says" in self.refusal(folder, capsys)

    def test_a_record_twice(self, folder, capsys):
        (folder / "selected.json").write_text(json.dumps([record(2), record(2)]))
        self.reseal(folder, lambda card: None)
        assert "selected.json: holds a record twice" in self.refusal(folder, capsys)

    @pytest.mark.parametrize("content", ["{", "[1]", '[{"unique_id": 1}]', '{"a": 1}', '[{"conversations": [{}]}]'])
    def test_no_records(self, folder, capsys, content):
        (folder / "selected.json").write_text(content)
        self.reseal(folder, lambda card: None)
        assert "selected.json: is no list of records as LLaVA has them" in self.refusal(folder, capsys)

    def test_several_types(self, folder, capsys):
        (folder / "selected.json").write_text(json.dumps([record(2, id=1), record(3)]))
        self.reseal(folder, lambda card: None)
        assert "a field has values of several types" in self.refusal(folder, capsys)

    def test_other_types(self, folder, capsys):
        (folder / "selected.json").write_text(json.dumps([record(2, more=1), record(3)]))
        self.reseal(folder, lambda card: None)
        assert "fields have other types than card.json says" in self.refusal(folder, capsys)
