"""Studies: methods × problems × seeds as one content-addressed job graph, run on this machine."""
