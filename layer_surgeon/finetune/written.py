"""Metrics that compare generated texts with references, computed with sacrebleu, rouge-score and nltk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sacrebleu
from nltk.corpus import wordnet
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_l_sum": "rougeLsum"}


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Metrics of one set of generated texts.

    Attributes:
        bleu: Corpus BLEU from sacrebleu, 0 to 100.
        rouge_1: Mean ROUGE-1 F score over the texts, from rouge-score without stemming, 0 to 1.
        rouge_2: The same for ROUGE-2.
        rouge_l: The same for ROUGE-L.
        rouge_l_sum: The same for ROUGE-Lsum, with one sentence per line.
        meteor: Mean METEOR over the texts, from nltk, 0 to 1.
        loss: Mean cross-entropy over target tokens in nats, without label smoothing.
        examples: Number of texts.
        bleu_signature: The signature of sacrebleu, which describes its settings.
        meteor_stages: How METEOR matched words: exact, stem and, if WordNet is installed, synonym.
        mean_length: Mean number of words per generated text, split at whitespace.
        extra: BERTScore and BARTScore, if requested.
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
    extra: Mapping[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name, BLEU first."""
        names = ("bleu", *_ROUGE, "meteor")
        return {name: getattr(self, name) for name in names} | dict(self.extra) | {"loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


def measure_texts(written: Sequence[str], references: Sequence[str], loss: float = 0.0) -> TextMetrics:
    """Compute the metrics of generated texts over the whole set.

    Args:
        written: The generated texts.
        references: One reference per generated text.
        loss: The loss to report.
    """
    bleu = sacrebleu.BLEU()
    corpus = bleu.corpus_score(list(written), [list(references)])
    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=False)
    rouge = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
    meteor, stages = _meteor(written, references)
    return TextMetrics(
        bleu=float(corpus.score),
        **{
            name: sum(float(scores[rouge_name].fmeasure) for scores in rouge) / len(rouge)
            for name, rouge_name in _ROUGE.items()
        },
        meteor=meteor,
        loss=loss,
        examples=len(written),
        bleu_signature=str(bleu.get_signature()),
        meteor_stages=stages,
        mean_length=sum(len(text.split()) for text in written) / len(written),
        extra={},
    )


class _NoSynonyms:
    """Replaces WordNet if it is not installed: no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        """Return no synonyms."""
        return []


def has_wordnet() -> bool:
    """Whether WordNet is installed (`python -m nltk.downloader wordnet`). layer_surgeon never downloads it."""
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
