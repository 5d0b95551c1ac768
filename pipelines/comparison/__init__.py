"""SAEs compared on the same held-out conversations: what may be compared, paired differences, tables and the page."""
