from .demo import cut_donor as cut_donor
from .demo import run_demo as run_demo
