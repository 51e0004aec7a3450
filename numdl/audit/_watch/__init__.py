"""Parts of `watch`: instruments and their pace, what is remembered, conditions and rules, the journal and its page."""
