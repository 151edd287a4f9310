import gc
import json

import pytest

from crossvit.data.reading.annotations import read_json, read_jsonl, text_id
from crossvit.errors import UserError


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "ü🐕"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, "ü🐕"]}
    assert gc.isenabled()


def test_malformed_json_names_file_and_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n "b": 2,\n "c" 3}')
    with pytest.raises(UserError, match=r"a\.json, line 3: not valid JSON"):
        read_json(path)
    assert gc.isenabled()


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": "x\u2028y\x85z"}, ensure_ascii=False) + '\r\n\n{"a": 2}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(1, {"a": "x\u2028y\x85z"}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "message"), [('{"a": 1', "not valid JSON"), ("[1]", "expected an object, found list")]
)
def test_malformed_jsonl_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: {message}"):
        list(read_jsonl(path))


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes('{\n"a": "\xe9"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.json, line 2: not UTF-8"):
        read_json(tmp_path / "latin.json")


def test_equal_captions_share_an_id():
    same = ["A dog runs.", "a dog  runs .", " a DOG runs", "a \uff44\uff4f\uff47 runs"]
    assert len({text_id(text) for text in same}) == 1
    different = ["", "a dog", "dog a", "a dog runs", "狗", "🐕"]
    assert len({text_id(text) for text in different}) == 6
    assert all(0 <= text_id(text) < 2**63 for text in [*same, *different])
    assert text_id("a dog") == 9_151_722_581_430_185_315  # the same in every process
