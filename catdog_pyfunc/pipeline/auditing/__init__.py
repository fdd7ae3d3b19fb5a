"""Finds what is wrong with a dataset: labels, copies, outliers, image quality, balance."""
