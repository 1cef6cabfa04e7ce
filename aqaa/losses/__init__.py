"""The mathematics, as pure functions; each is tested against a slow reference with loops."""
