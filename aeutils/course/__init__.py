"""Running the course: the notebooks' settings and results, the command line, the run folder and its report."""
