"""Controllers judged on recorded texts, and the bounds that no controller exceeds."""
