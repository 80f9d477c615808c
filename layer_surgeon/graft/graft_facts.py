"""The facts about a graft that its model card states."""

from pathlib import Path

from layer_surgeon._io import write_text
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.hub.graft_card import GraftCard
from layer_surgeon.hub.origin import GraftedLayer, Origin, SourceModel
from layer_surgeon.tasks import get_task


def write_card(config: SurgeonGraftConfig, counts: dict[str, tuple[int, int]], folder: Path) -> None:
    """Write README.md.

    Args:
        config: The grafted model's config.
        counts: `GraftedModel.parameter_counts`.
        folder: The folder of the grafted model.
    """
    card = GraftCard(
        origin=graft_origin(config),
        task=get_task(config.task),
        parts=counts,
        settings=config.graft,
        labels=config.settings.labels,
    )
    write_text(folder / "README.md", card.render())


def graft_origin(config: SurgeonGraftConfig) -> Origin:
    """Return the models that a graft was made from, with their licences."""
    host, donor, layer = config.host or {}, config.donor, None
    name = host.get("name") or f"a {config.host_config.model_type} model"
    models = [SourceModel(part="host", name=name, licence=_licence(host))]
    if donor is not None:
        name = donor.get("name") or "an unnamed model"
        models.append(SourceModel(part="donor", name=donor.get("base_model") or name, licence=_licence(donor)))
        layer = GraftedLayer(
            model=name,
            indices=tuple(donor["layer_indices"]),
            commit=donor.get("commit"),
            random=config.graft["donor_init"] == "random",
            trained=config.graft["train_donor"],
            reads_text=config.settings.reads_text,
        )
    return Origin(models=tuple(models), layer=layer, is_graft=True, has_head=get_task(config.task).head)


def _licence(model: dict[str, object]) -> str | None:
    licence = model.get("license")
    return licence if isinstance(licence, str) else None
