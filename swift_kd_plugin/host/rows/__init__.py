"""Dataset rows on their way through ms-swift."""
