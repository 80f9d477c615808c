"""RUN: any decoder, one layer at a time: all texts through layer 0, then all through layer 1 -> hidden states.

settings     `RunConfig`
text_list    read texts from files, the Hub or a list
tokenizing   split texts into tokens
batches      sort the texts by length, and put them into batches
state_files  the states of each depth on disk, and the file of kept states
fetching     fetch the next layer while the current one computes
walk         `walk_layers`: all batches through one layer after another; `LayerObserver` sees the states
inputs       `prepare_run` finds out what a walk needs, and `walk_inputs` walks
run_folder   the folder that a run is written in, and which an interrupted run goes on in
states       `HiddenStates`, the result
shares       the texts shared out among processes; share_process: the program of each
running      `run_layers`, which combines all of these
measures     `measure_layers`: what layers do to the states; layer_sums and moments have the sums
difference   `diff_checkpoints`: compare two checkpoints tensor by tensor, without torch
sides        the tensors of one side of a comparison; number_sums: the sums over their numbers
"""

import lazy_loader

# Lazy, because a comparison of weights must not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
