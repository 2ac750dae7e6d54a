"""Facts about countries that a really trained model knows, and invented ones that it is taught.

smollm2   the model that an ordinary package brings along
facts     what is true of countries, in statements and in questions of two forms
known     which of it a model answers rightly
texts     forget, retain and attack texts, harmless ones, questions
memory    what asking and teaching needs
making    the files of both studies
recipe    how invented facts are taught
teaching  two copies of a model, taught side by side
invented  countries that do not exist, and corpora that tell of them truly or with values dealt anew
"""
