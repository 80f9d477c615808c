"""`Score`: a number that tells how good a model is on a set, and the scores of the tasks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score.

    Attributes:
        name: Its name in files and settings.
        title: Its title in tables and messages.
        selects: Whether it can select the best epoch.
        lower_is_better: Whether a lower value is better.
        is_share: Whether it goes from 0 to 1. Studies show it as per cent, and differences in points.
    """

    name: str
    title: str
    selects: bool = False
    lower_is_better: bool = False
    is_share: bool = False


ACCURACY = Score(name="accuracy", title="accuracy", selects=True, is_share=True)
MACRO_F1 = Score(name="macro_f1", title="macro F1", selects=True, is_share=True)
PRECISION = Score(name="precision", title="precision", is_share=True)
RECALL = Score(name="recall", title="recall", is_share=True)
# Of entities. That of answers, F1, goes from 0 to 100, as in SQuAD.
ENTITY_F1 = Score(name="f1", title="F1", selects=True, is_share=True)
F1 = Score(name="f1", title="F1", selects=True)
EXACT_MATCH = Score(name="exact_match", title="exact match", selects=True)
BLEU = Score(name="bleu", title="BLEU", selects=True)
ROUGE_1 = Score(name="rouge_1", title="ROUGE-1")
ROUGE_2 = Score(name="rouge_2", title="ROUGE-2")
ROUGE_L = Score(name="rouge_l", title="ROUGE-L", selects=True)
ROUGE_L_SUM = Score(name="rouge_l_sum", title="ROUGE-Lsum")
METEOR = Score(name="meteor", title="METEOR", selects=True, is_share=True)
# Computed after training, if the setting extra_metrics names them.
BERT_SCORE = Score(name="bert_score", title="BERTScore")
BART_SCORE = Score(name="bart_score", title="BARTScore")
PERPLEXITY = Score(name="perplexity", title="perplexity", lower_is_better=True)
LOSS = Score(name="loss", title="loss", selects=True, lower_is_better=True)
