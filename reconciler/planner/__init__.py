"""From what is observed and what is desired to a plan: rules, prices, proof.  Pure."""
