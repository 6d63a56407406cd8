"""What the examples that train a flow share: recipes, run folders and settings, the report's page."""
