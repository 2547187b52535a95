"""
Faults made for real: random chains and wishes, one fault each, and what must hold afterwards.

``python -m tests.faults --seed N --minutes M --report FILE`` breaks processes, tools
and the world around them; ``python -m tests.faults.power`` takes the power away.
``test_short.py`` and ``test_power.py`` are their short parts.
"""
