"""Experiments that answer the questions of the d2l.ai chapter "Dropout": `python -m training.studies all`.

`catalogue` lists the studies, one module each; `study` defines their common structure. `stack` trains many networks
together, with the noise of `perturbations`; `measurements` loads images and measures networks. `workers` runs the work
that the results table (`table`) lacks. `document` writes text and pictures from that table alone, with the sentences of
`claims` and the statistics of `intervals`.
"""
