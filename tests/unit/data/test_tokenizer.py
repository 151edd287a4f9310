import pickle

import pytest
import torch

from crossvit.data.scenes.grammar import VOCABULARY
from crossvit.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer, WordTokenizer
from crossvit.errors import UserError

STRANGE = ["", "   ", "🐕🎉", "狗在草地上跑", "собака", "a\nred\tcircle", "red " * 500, "\x00\u200b", "l'été — naïve"]


@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer()


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def all_tokenizers(request):
    return [
        WordTokenizer("scenes", 16),
        request.getfixturevalue("clip"),
        HuggingFaceTokenizer(str(request.getfixturevalue("hugging_face_folder")), 16),
    ]


def test_common_contract(request):
    for tokenizer in all_tokenizers(request):
        for texts in ([*STRANGE], ["a red circle"], []):
            tokens, mask = tokenizer.encode(texts)
            assert tokens.shape == mask.shape and tokens.dtype == torch.int64 and mask.dtype == torch.bool
            assert len(tokens) == len(texts) and tokens.shape[1] <= tokenizer.context_length
            assert ((tokens >= 0) & (tokens < tokenizer.vocab_size)).all()
            assert (tokens[~mask] == tokenizer.pad_id).all()
            full = tokenizer(texts)
            assert full.shape == (len(texts), tokenizer.context_length)
            assert torch.equal(full[:, : tokens.shape[1]], tokens)
        assert torch.equal(tokenizer("a red circle"), tokenizer(["a red circle"]))


def test_the_batch_is_cut_to_its_longest_text(request):
    for tokenizer in all_tokenizers(request):
        tokens, mask = tokenizer.encode(["a", "a red circle"])
        assert tokens.shape[1] == 5
        assert mask.sum(1).tolist() == [3, 5]


def test_truncation_is_counted(request):
    for tokenizer in all_tokenizers(request):
        before = tokenizer.truncated
        tokens, mask = tokenizer.encode(["red " * 500, "a"])
        assert tokenizer.truncated == before + 1
        assert tokens.shape[1] == tokenizer.context_length and mask[0].all()


def test_tokenizers_travel_to_spawned_workers(request):
    for tokenizer in all_tokenizers(request):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert torch.equal(copy(STRANGE), tokenizer(STRANGE))


def test_words():
    tokenizer = WordTokenizer("scenes", 8)
    assert tokenizer.words[:4] == ("<pad>", "<unk>", "<cls>", "<eos>")
    assert tokenizer.vocab_size == 4 + len(VOCABULARY)
    word = VOCABULARY[0]
    assert tokenizer(f"{word.upper()} xyzzy").tolist() == [[2, 4, 1, 3, 0, 0, 0, 0]]
    assert (tokenizer.pad_id, tokenizer.eot_id) == (0, 3)


def test_truncated_words_keep_their_end():
    assert WordTokenizer("scenes", 4)(" ".join(["xyzzy"] * 9)).tolist() == [[2, 1, 1, 3]]


def test_every_word_of_the_scenes_is_one_known_token():
    tokenizer = WordTokenizer("scenes", 4)
    assert [tokenizer.ids(word) for word in VOCABULARY] == [[2, 4 + i, 3] for i in range(len(VOCABULARY))]


def test_vocabulary_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Red\nblue\nred\n.\n")
    tokenizer = WordTokenizer(str(path), 6)
    assert tokenizer.words[4:] == ("red", "blue", ".")
    assert tokenizer("Blue red.").tolist() == [[2, 5, 4, 6, 3, 0]]


@pytest.mark.parametrize("content", [None, "  \n"])
def test_missing_or_empty_vocabulary(tmp_path, content):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.vocabulary=.*words\.txt"):
        WordTokenizer(str(path))


def test_clip_ids_are_those_of_open_clip(clip):
    import open_clip

    texts = ["a photo of a dog!", "Two  CATS\n&amp; a bird", *STRANGE]
    assert torch.equal(clip(texts), open_clip.get_tokenizer("RN50")(texts))
    assert clip.vocab_size == 49_408


def test_spelled_special_tokens_are_no_special_tokens(clip):
    ids = clip.ids("a <end_of_text> b")
    assert ids.count(clip.eot_id) == 1 and ids[-1] == clip.eot_id


def test_hugging_face(hugging_face_folder):
    tokenizer = HuggingFaceTokenizer(str(hugging_face_folder), 8)
    assert tokenizer("A red dog").tolist() == [[2, 5, 6, 1, 3, 0, 0, 0]]
    assert tokenizer.eot_id is None


def test_hugging_face_folder_without_tokenizer(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"tokenizer\.folder="):
        HuggingFaceTokenizer(str(tmp_path / "nothing"))


def test_context_too_short():
    with pytest.raises(ValueError, match="at least 3"):
        WordTokenizer("scenes", 2)


def test_pieces_can_be_read(request):
    for tokenizer in all_tokenizers(request):
        assert [piece for piece in tokenizer.pieces("A red circle") if piece in ("a", "red", "circle")] == [
            "a",
            "red",
            "circle",
        ]
        for text in STRANGE:
            assert len(tokenizer.pieces(text)) == len(tokenizer.ids(text))


def test_the_end_that_is_cut_off(request, hugging_face_folder):
    text = "a red " * 3 + "circle"
    left = [
        WordTokenizer("scenes", 6, truncation_side="left"),
        ClipTokenizer(6, truncation_side="left"),
        HuggingFaceTokenizer(str(hugging_face_folder), 6, truncation_side="left"),
    ]
    for tokenizer in left:
        pieces = tokenizer.pieces(text)
        assert len(pieces) == 6 and [piece.strip() for piece in pieces[1:-1]] == ["red", "a", "red", "circle"]
        assert tokenizer.truncated == 1
        assert "of more than 6 tokens the last are kept" in tokenizer.policy()
        assert len(tokenizer.ids("a red circle")) == 5
    right = WordTokenizer("scenes", 6)
    assert right.pieces(text)[1:-1] == ["a", "red", "a", "red"] and "the first are kept" in right.policy()
    with pytest.raises(UserError, match=r"tokenizer\.truncation_side=end is not one of right, left"):
        WordTokenizer("scenes", 6, truncation_side="end")


def test_lower_case_where_the_tokenizer_keeps_capitals(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]
    vocabulary = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=False).save_pretrained(tmp_path)
    kept, lowered = (HuggingFaceTokenizer(str(tmp_path), 8, lowercase=lowercase) for lowercase in (False, True))
    assert kept.ids("Red") == [2, 1, 3] and lowered.ids("Red") == [2, 5, 3]
    assert "lower-cased" in lowered.policy() and "as the tokenizer's own files say" in kept.policy()


def test_clip_ids_of_plain_texts_are_those_of_open_clip():
    """Texts of plain ASCII go word by word, others as a whole; open_clip's encoder takes them all as a whole."""
    texts = [
        "",
        "  A  dog ,running. ",
        "it's 12:30, DON'T<b>x</b>",
        "a<start_of_text>b",
        "tab\there",
        "caf\u00e9 \u201cq\u201d",
        "a &amp; b",
    ]
    tokenizer = ClipTokenizer()
    for text in texts * 2:  # the second time from what was kept
        ids = [i for i in tokenizer._bpe.encode(text) if i not in tokenizer._bpe.all_special_ids]
        assert tokenizer.ids(text) == [tokenizer._bpe.sot_token_id, *ids, tokenizer._bpe.eot_token_id]
