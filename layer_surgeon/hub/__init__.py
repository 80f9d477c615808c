"""SHARE: model cards, and uploads to the Hub. Never imports torch.

layer_card, assembly_card, graft_card, run_card
            the facts of each model card, which extract, assemble, graft and finetune fill in
origin      facts that the cards of grafts and runs share: base models, licences, example code
rendering   facts + templates/*.md.jinja -> README.md
access      whether the Hub will accept an upload, before the work whose result it is
published   which files of a folder are uploaded, and their text without local paths and secrets
push        `push_graft`: upload a graft, a run, a layer artifact or an assembled model
"""
