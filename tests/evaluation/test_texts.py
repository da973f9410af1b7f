"""BLEU and ROUGE in English and Chinese, against the libraries' own scores and values counted by hand."""

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU

from swift_kd_plugin.evaluation.eval_metrics import Bleu, Item, Metric, Rouge
from swift_kd_plugin.evaluation.texts import UnitTokenizer, choose_language

ENGLISH = [
    ("The cat sat on the mat.", "A cat sat on the mat today."),
    ("It's 3.5 degrees, isn't it?", "It is 3.5 degrees."),
    ("no word in common", "Ganz anders hier drin"),
    ("the the the the the", "the dog and the cat"),
]
CHINESE = [
    ("今天天气很好，我们去公园玩。", "今天天气不错，我们去公园散步。"),
    ("模型有 32 层，用 bf16 训练。", "模型有32层，使用 bf16 训练。"),
    ("知识蒸馏", "知识蒸馏"),
]


def items(pairs: list[tuple[str, str]]) -> list[Item]:
    return [Item(number, {}, gold, answer, answer) for number, (answer, gold) in enumerate(pairs)]


def figures(metric: Metric, pairs: list[tuple[str, str]]) -> dict[str, float]:
    metric.prepare([gold for _, gold in pairs])
    rows = [metric.rows(item) for item in items(pairs)]
    return {name: q.figure([row[name] for row in rows], seed=0).value for name, q in metric.quantities.items()}


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")], ids=["en", "zh"])
def test_bleu_is_sacrebleus_corpus_bleu(pairs, tokenizer):
    metric = Bleu("auto")
    found = figures(metric, pairs)["bleu"]
    theirs = BLEU(tokenize=tokenizer)
    score = theirs.corpus_score([answer for answer, _ in pairs], [[gold for _, gold in pairs]])
    assert found == pytest.approx(score.score, abs=1e-9)
    assert 10 < found < 90
    assert metric.describe()["signature"] == str(theirs.get_signature())


def test_bleu_by_hand():
    """4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; as long as the gold answer."""
    assert figures(Bleu("en"), [("a b c d x", "a b c d y")])["bleu"] == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_chinese_bleu_by_hand():
    """The same with characters: 13a would see one word that is wrong."""
    wanted = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert figures(Bleu("auto"), [("天地玄黄甲", "天地玄黄乙")])["bleu"] == pytest.approx(wanted)
    assert figures(Bleu("en"), [("天地玄黄甲", "天地玄黄乙")])["bleu"] == 0


def test_bleu_says_that_short_answers_have_none():
    metric = Bleu("auto")
    assert figures(metric, [("5332", "5332")])["bleu"] == 0
    assert "no gold answer has the four tokens" in metric.describe()["note"]
    assert figures(metric, [("5332", "5332"), ("a b c d", "a b c d")])["bleu"] > 0
    assert "note" not in metric.describe()


def test_rouge_scores_own_tokenizer_gives_equal_chinese_texts_nothing():
    text = "知识蒸馏让小模型学会大模型的本领。"
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(text, text)
    assert [score.fmeasure for score in theirs.values()] == [0, 0, 0]
    assert figures(Rouge(), [(text, text)]) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}


def test_rouge_of_english_is_rouge_scores_own():
    theirs = RougeScorer(list(Rouge.types))
    for answer, gold in ENGLISH:
        wanted = {name: score.fmeasure for name, score in theirs.score(gold, answer).items()}
        assert figures(Rouge(), [(answer, gold)]) == pytest.approx(wanted)
        assert UnitTokenizer().tokenize(answer) == DefaultTokenizer().tokenize(answer)


def test_chinese_rouge_by_hand():
    """Gold 我爱北京 (4 characters), answer 我爱上海 and GPT-4 (6 units): 2 in common, 1 pair of 3 and 5."""
    found = figures(Rouge(), [("我爱上海 GPT-4", "我爱北京")])
    assert found["rouge1"] == pytest.approx(2 * 2 / (4 + 6))
    assert found["rouge2"] == pytest.approx(2 * 1 / (3 + 5))
    assert found["rougeL"] == pytest.approx(2 * 2 / (4 + 6))


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["All of it in English.", "café"], "en"),
        (["答案是 42。", "It is 42."], "zh"),
        (["答えは42です。", "知識"], "ja"),
        (["답은 42입니다.", "知識"], "ko"),
        ([], "en"),
    ],
)
def test_the_language_is_told_by_the_gold_answers(texts, language):
    found, why = choose_language("auto", texts)
    assert found == language
    assert "gold answers have" in why
    assert choose_language("zh", texts) == ("zh", "--text_language zh")


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_japanese_and_korean_are_compared_by_characters(language):
    metric = Bleu(language)
    assert figures(metric, [("こんにちは", "こんにちは")])["bleu"] == pytest.approx(100)
    assert "tok:char" in metric.signature
    assert metric.describe()["tokenizer"] == f"char for {language} (--text_language {language})"
