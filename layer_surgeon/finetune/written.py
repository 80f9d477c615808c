"""Metrics of written text against reference texts, by sacrebleu, rouge-score and nltk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sacrebleu
from nltk.corpus import wordnet
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_l_sum": "rougeLsum"}


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """What was measured on one set of written texts.

    Attributes:
        bleu: Corpus BLEU by sacrebleu, 0 to 100.
        rouge_1: Mean over texts of ROUGE-1's F, by rouge-score, without stemming, 0 to 1.
        rouge_2: Likewise ROUGE-2.
        rouge_l: Likewise ROUGE-L.
        rouge_l_sum: Likewise ROUGE-Lsum, whose sentences are lines.
        meteor: Mean over texts of METEOR, by nltk, 0 to 1.
        loss: Mean cross-entropy over target tokens in nats, without label smoothing.
        examples: Texts.
        bleu_signature: sacrebleu's account of how it counted.
        meteor_stages: How METEOR matched words: exact, stem and, where WordNet is installed, synonym.
        mean_length: Mean number of written words, by blanks.
        extra: BERTScore and BARTScore, where asked for.
    """

    bleu: float
    rouge_1: float
    rouge_2: float
    rouge_l: float
    rouge_l_sum: float
    meteor: float
    loss: float
    examples: int
    bleu_signature: str
    meteor_stages: str
    mean_length: float
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """BLEU first."""
        names = ("bleu", *_ROUGE, "meteor")
        return {name: getattr(self, name) for name in names} | dict(self.extra) | {"loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


def measure_texts(
    written: Sequence[str], references: Sequence[str], loss: float = 0.0, extra: dict[str, float] | None = None
) -> TextMetrics:
    """Measure written texts against references, over the whole set.

    Args:
        written: What the model wrote.
        references: What it should have, one for each.
        loss: What to report as the loss.
        extra: More scores, by name.
    """
    bleu = sacrebleu.BLEU()
    corpus = bleu.corpus_score(list(written), [list(references)])
    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=False)
    rouge = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
    meteor, stages = _meteor(written, references)
    return TextMetrics(
        bleu=float(corpus.score),
        **{name: sum(float(each[their].fmeasure) for each in rouge) / len(rouge) for name, their in _ROUGE.items()},
        meteor=meteor,
        loss=loss,
        examples=len(written),
        bleu_signature=str(bleu.get_signature()),
        meteor_stages=stages,
        mean_length=sum(len(text.split()) for text in written) / len(written),
        extra=extra or {},
    )


class _NoSynonyms:
    """In place of WordNet, where it isn't installed: a word has no synonyms."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


def has_wordnet() -> bool:
    """Whether nltk finds WordNet (`python -m nltk.downloader wordnet`); it is never downloaded by us."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def _meteor(written: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    synonyms = has_wordnet()
    words = NLTKWordTokenizer().tokenize
    scores = [
        meteor_score([words(reference)], words(text), wordnet=wordnet if synonyms else _NoSynonyms())
        for text, reference in zip(written, references, strict=True)
    ]
    return float(sum(scores) / len(scores)), "exact, stem, synonym" if synonyms else "exact, stem"
