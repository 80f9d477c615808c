"""SHARE: upload a folder to the Hub. Never imports torch.

published   which files of a folder are uploaded, and their text without local paths and secrets
access      whether the Hub will accept an upload, before the work whose result it is
push        `push_graft`: upload a graft, a run or a layer artifact
"""
