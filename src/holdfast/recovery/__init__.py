"""The index is expendable: its journal and snapshots on the stores, and making it again from them."""
