"""The chapter's questions, answered by experiments: `python -m training.studies all`.

`catalogue` lists the studies, each in a module of its own; `study` is what they have in common. `stack` trains many
networks side by side, with the noises of `perturbations`; `lab` has images and measurements. `work` runs what `table`
doesn't hold yet; from the table alone, `document` writes text and pictures, with the words of `claims` and the numbers
of `intervals`.
"""
