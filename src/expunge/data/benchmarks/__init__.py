"""Problems that are always there: one file each, with declared facts and a recipe for the target."""
