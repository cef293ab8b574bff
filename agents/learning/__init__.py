"""Controllers that are learned by trial on recorded texts."""
