"""`python -m roli_fast.analyze RUN`: the analysis of finished runs, anew or in more depth."""
