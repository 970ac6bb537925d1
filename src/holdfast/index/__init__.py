"""The index port and its adapters: the ordered, transactional rows that say what exists."""
