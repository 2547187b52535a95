"""
How much virt-chain costs beside the plain tools.

``python -m bench`` measures, in one run and on fresh copies of the same chains:

* the bytes that ``apply`` writes, against the least that any way must write;
* the time of ``apply``, against the best sequence an expert would type, and
  against what people do today;
* the time of ``plan`` with nothing to do, against the look itself;
* on guests that run and write: what a merge does to their writes, how soon its
  job starts, and the time of a whole story, against virsh.

Only ratios within one run mean anything: the machine may be shared and noisy.
"""
