"""The signature of a study on one page, from what the steps declare and the tables they left.

comparisons         the comparisons under an outroot, and the roles of their models
inventory           which step left a result, in which state, and its checked record
conditions          what a study was measured on and with
axes                the sections of the page, and what steps declare for them
reductions          a measure's number and its resamples, read from the tables of its step
conclusions         sentences by stated rules
verdicts            which measures tell unlearning from harmless training
assembling          all of this as one signature, and as the rows of signature.csv
signature           its types
formatting          numbers, sizes and times as the page writes them
pictures, page      figures, and the page as HTML
signature_figure    signature.png
tables              the measures as a Markdown table, for docs/signature.md
"""
