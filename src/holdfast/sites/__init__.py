"""Sites: two indexes with their stores, of which one serves and the other follows."""
