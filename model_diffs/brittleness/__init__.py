"""Does the signature predict brittleness? The registered study (docs/brittleness.md).

attack_free/    measures that may predict an attack without being one, one file each
reading         questions as these measures ask them
predictors      all numbers of a model that were measured without attacking it
table           the study as one table: a row per model of each world
analysis        the registered statistic, its interval and null
measures        what each measure adds
choosing        which three measures predict best in the development worlds
power           what the registered rule would find, by simulation
tables          the analysis as tables
picture         predicted against true
placing         a model of one's own in the fitted picture
"""
