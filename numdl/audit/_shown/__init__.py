"""How a report is shown: words and paths of its numbers, tables, figures, the page."""
