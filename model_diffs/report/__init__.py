"""The signature of a study on one page, from the tables that the steps left behind."""
