"""From the data to an artifact: recipes, fitting, evaluation."""
