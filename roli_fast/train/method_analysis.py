"""The light analysis of one method and seed of a run, part by part: analysis.json, examples.npz."""
