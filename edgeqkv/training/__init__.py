"""Training: a recipe is data, a run goes on after a kill, and a study trains variants that differ in attention alone."""
