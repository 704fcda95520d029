"""BLEU and ROUGE as their libraries compute them; BERTScore on a small random encoder, against its formula."""

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import BertConfig, BertModel, BertTokenizerFast

from btsft_nb.evaluation.metrics import bert_score, bleu, rouge

TEXTS = [
    "the cat sat on the mat",
    "there is a dog in the house",
    "she took 3 of the 4 red apples",
    "no",
]
REFERENCES = [
    "the cat is on the mat",
    "a dog is in the house",
    "she took 3 of the 4 green apples",
    "yes, indeed",
]


def test_bleu_is_the_corpus_score_of_sacrebleu():
    """With a text for each prompt, and with several."""
    found = bleu(TEXTS, REFERENCES)
    assert found["value"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score)
    assert found["n"] == 4 and found["low"] < found["value"] < found["high"]
    samples = [[text, text[:-2]] for text in TEXTS]
    flat = [text for group in samples for text in group]
    twice = [reference for reference in REFERENCES for _ in range(2)]
    assert bleu(samples, REFERENCES)["value"] == pytest.approx(
        sacrebleu.corpus_bleu(flat, [twice]).score
    )
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(
        {"value": 100, "low": 100, "high": 100, "n": 4}
    )
    assert bleu(["", "a"], ["b", "c"])["value"] == 0


def test_the_interval_of_bleu_is_that_of_prompts():
    """As wide where every prompt has its sample twice; narrower with more prompts."""
    one, twice = (
        bleu(TEXTS[:3], REFERENCES[:3]),
        bleu([[text] * 2 for text in TEXTS[:3]], REFERENCES[:3]),
    )
    assert {**one, "low": 0} == pytest.approx(
        {**twice, "low": 0}
    )  # smoothing, where none matches, knows the size
    one = bleu(TEXTS, REFERENCES)
    many = bleu(TEXTS * 9, REFERENCES * 9)
    assert many["value"] == pytest.approx(one["value"])
    assert many["high"] - many["low"] < (one["high"] - one["low"]) / 2


def test_rouge_is_the_mean_of_rouge_scores():
    """F-measures, first over a prompt's samples."""
    found = rouge([[TEXTS[0], TEXTS[1]], [TEXTS[2]]], REFERENCES[1:3])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    pairs = [(1, TEXTS[0]), (1, TEXTS[1]), (2, TEXTS[2])]
    for name in ("rouge1", "rouge2", "rougeL"):
        one, two, three = (scorer.score(REFERENCES[i], text)[name].fmeasure for i, text in pairs)
        assert (
            found[name]["value"] == pytest.approx(((one + two) / 2 + three) / 2)
            and found[name]["n"] == 2
        )
    assert rouge(["a b c d"], ["b a c d"])["rougeL"]["value"] == pytest.approx(
        0.75
    )  # Lin 2004: 3 of 4 in order


@pytest.mark.parametrize("score", [bleu, rouge])
def test_texts_without_their_reference_are_refused(score):
    for texts, references, message in [
        (["a"], ["a", "b"], r"2 references need a text or more each, got \[\['a'\]\]"),
        (["a", []], ["a", "b"], r"2 references need .* got \[\['a'\], \[\]\]"),
        ("the cat", "the cat", "7 references need"),
        ([], [], "0 references need"),
    ]:
        with pytest.raises(ValueError, match=message):
            score(texts, references)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a random BERT of three layers and a tokenizer of the words above."""
    folder = tmp_path_factory.mktemp("bert")
    known = sorted(
        {word for text in TEXTS + REFERENCES for word in text.replace(",", " ,").split()}
    )
    vocab = folder / "words.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]))
    tokenizer = BertTokenizerFast(str(vocab), model_max_length=64)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_bert_score_is_its_formula(encoder):
    """Each token's greatest cosine with one of the other text, at layer 2; special tokens have no weight."""
    pytest.importorskip("bert_score")
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        AutoModel.from_pretrained(encoder).eval(),
        AutoTokenizer.from_pretrained(encoder),
    )

    def states(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(
                **tokenizer(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states[2]
        return torch.nn.functional.normalize(hidden[0], dim=-1)

    wanted = []
    for text, reference in zip(TEXTS, REFERENCES, strict=True):
        cosines = states(text) @ states(reference).T
        precision, recall = (cosines.max(axis).values[1:-1].mean().item() for axis in (1, 0))
        wanted.append((precision, recall, 2 * precision * recall / (precision + recall)))
    found = bert_score(TEXTS, REFERENCES, str(encoder), num_layers=2)
    assert [found[name]["value"] for name in ("precision", "recall", "f1")] == pytest.approx(
        np.mean(wanted, axis=0).tolist(), abs=1e-5
    )
    grouped = bert_score([TEXTS[:2]], REFERENCES[:1], str(encoder), num_layers=2)
    assert grouped["f1"]["n"] == 1
