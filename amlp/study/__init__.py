"""Studies: variants, label fractions and seeds compared on one test split, and the page of the results."""
