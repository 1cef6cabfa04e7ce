"""The judge, the figures and the report: are the spoken answers right, and how sure is that."""
