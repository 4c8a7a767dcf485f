"""The command `mcd`: one way in to serving, predicting, bulk scoring, training and evaluating."""
