"""The compared methods: baselines, adaptation to the target region, fusion, and the experiment that runs them."""
