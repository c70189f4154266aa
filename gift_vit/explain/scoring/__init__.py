"""How good maps are: against annotations, against what the model uses, and across trainings."""
