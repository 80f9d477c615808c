from .difference import CheckpointDifference as CheckpointDifference
from .difference import diff_checkpoints as diff_checkpoints
from .measures import LayerMeasures as LayerMeasures
from .measures import measure_layers as measure_layers
from .running import run_layers as run_layers
from .settings import RunConfig as RunConfig
from .states import HiddenStates as HiddenStates
