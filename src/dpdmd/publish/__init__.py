"""Hand a student to others: export, model card, upload."""
