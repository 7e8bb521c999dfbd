"""The paper's tables, each by one command: what was published, a plan of runs, the runs, and the page they end on."""
