"""Tokens and conversations as people see them: text with signs for what is unseen, colours by class, HTML pages."""
