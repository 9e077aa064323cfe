"""Figures for papers on matplotlib, which importing this loads; ``view.figures`` says what there is to draw."""
