"""Who is part of the cluster: the rows by which nodes know each other, and what follows from them."""
