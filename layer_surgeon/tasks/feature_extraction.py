"""Feature extraction: the states of all tokens, and one vector per text. There is nothing to fine-tune."""

from layer_surgeon.tasks.task import Task

FEATURE_EXTRACTION = Task(
    name="feature-extraction",
    model_class="layer_surgeon.graft.features:GraftedModelForFeatureExtraction",
    auto="AutoModel",
    pipeline_tag="feature-extraction",
    pools=True,
    default_pooling="mean",
    outputs={"last_hidden_state": True, "pooler_output": False},
)
